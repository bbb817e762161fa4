"""How requests come in and answers go out: what a client does slowly, wrongly or too often costs no thread."""
