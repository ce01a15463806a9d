{{- define "trainyard.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "trainyard.selector" -}}
app.kubernetes.io/name: trainyard-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trainyard.labels" -}}
{{ include "trainyard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "trainyard.rules" -}}
- apiGroups: [trainyard.dev]
  resources: [trainingjobs]
  verbs: [get, list, watch, delete]  # ttlSecondsAfterFinished
- apiGroups: [trainyard.dev]
  resources: [trainingjobs/status]
  verbs: [patch]
- apiGroups: [trainyard.dev]
  resources: [trainingjobs/finalizers]  # owner references that block the owner's deletion
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [secrets]  # a token for each job; reading is not allowed
  verbs: [create]
- apiGroups: [apps]
  resources: [controllerrevisions]  # snapshots of accepted specs
  verbs: [get, create]
- apiGroups: [scheduling.k8s.io, scheduling.x-k8s.io, scheduling.volcano.sh]
  resources: [podgroups]  # spec.scheduling.gang
  verbs: [get, create, deletecollection]
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]  # spec.scheduling.queue
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]  # an event that occurs again is counted
{{- end }}

{{- /* The path of the runbooks in the generated files (RUNBOOKS in monitoring/). */}}
{{- define "trainyard.runbooks" -}}
docs/runbooks
{{- end }}

{{- /* An image, from a dictionary: name of the section in the values, its image values, appVersion. */}}
{{- define "trainyard.image" -}}
{{- $missing := printf "%s.image.repository is required: build the image, push it where the nodes can pull it, and pass --set %s.image.repository=REGISTRY/NAME (docs/install.md)" .section .section -}}
{{ required $missing .image.repository }}:{{ .image.tag | default .version }}
{{- end }}
