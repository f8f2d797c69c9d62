"""What is special to experts: where their trajectories are kept, how they are trained."""
