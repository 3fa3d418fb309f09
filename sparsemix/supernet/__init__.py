"""What is searched: mixed operations, the group of their alphas, and alphas that other code owns."""
