"""One worker pod, as its first process sees it: it forks the ranks and watches them. Free of torch."""
