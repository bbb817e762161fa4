"""Opening an export.pkl: the container, the pickle as data, the names it may use, and the learner that comes of it."""
