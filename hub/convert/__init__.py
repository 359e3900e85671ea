"""Convert official checkpoints to the zoo's parameter names; every tensor has to be used up."""
