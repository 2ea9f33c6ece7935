"""The clients that people use, each as its users run it, against the server process."""
