"""What is named by a person becomes something to work with: teachers, students, reward models, data."""
