"""Training on prompts and answers, with gold answers and with a teacher's sparse distributions."""
