"""The first process of a worker pod: it forks the ranks and watches them. Free of torch."""
