"""What trains a network: Learners, target networks, objectives, and how a part is named and made."""
