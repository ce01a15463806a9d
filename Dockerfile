# Two images from one file: `operator` (small, without torch) and `trainer` (torch and the built-in trainer).
#   docker build --target operator -t trainyard-operator .
#   docker build --target trainer  -t trainyard-trainer .
# The large layer of each holds the locked dependencies and changes only with uv.lock; the project's own code is a
# small layer on top. Bytecode is compiled here, because the start of a worker is mostly imports.
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS uv
# A certificate bundle and package index of the build machine's own, if it has them.
ARG SSL_CERT_FILE
RUN python3 -m venv /uv && /uv/bin/pip install --no-cache-dir uv==0.13.9

# hadolint ignore=DL3006
FROM ${BASE} AS wheel
ARG SSL_CERT_FILE
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY api api
COPY operator operator
COPY trainer trainer
COPY cli cli
RUN --mount=type=bind,from=uv,source=/uv,target=/uv /uv/bin/uv build --no-cache --wheel --out-dir /wheel

# hadolint ignore=DL3006
FROM ${BASE} AS operator-dependencies
ARG SSL_CERT_FILE
ENV UV_PROJECT_ENVIRONMENT=/opt/trainyard UV_PYTHON_DOWNLOADS=never
WORKDIR /src
RUN --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=uv.lock,target=/src/uv.lock \
    /uv/bin/uv sync --no-cache --frozen --no-default-groups --no-install-project --compile-bytecode --extra operator

# hadolint ignore=DL3006
FROM ${BASE} AS trainer-dependencies
ARG SSL_CERT_FILE
# torch.compile needs a C++ compiler (and Python's headers, which python:3.11 has).
# hadolint ignore=DL3008
RUN command -v g++ || { apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; }
ENV UV_PROJECT_ENVIRONMENT=/opt/trainyard UV_PYTHON_DOWNLOADS=never
WORKDIR /src
RUN --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=uv.lock,target=/src/uv.lock \
    /uv/bin/uv sync --no-cache --frozen --no-default-groups --no-install-project --compile-bytecode --extra trainer

FROM operator-dependencies AS operator
RUN --mount=type=bind,from=uv,source=/uv,target=/uv --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /uv/bin/uv pip install --no-cache --python /opt/trainyard --no-deps --compile-bytecode /wheel/*.whl
ENV PATH=/opt/trainyard/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["trainyard-operator"]

FROM trainer-dependencies AS trainer
RUN --mount=type=bind,from=uv,source=/uv,target=/uv --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /uv/bin/uv pip install --no-cache --python /opt/trainyard --no-deps --compile-bytecode /wheel/*.whl
ENV PATH=/opt/trainyard/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
EXPOSE 9400 29500
CMD ["python", "-P", "-m", "trainyard_trainer"]
