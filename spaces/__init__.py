"""What is searched: cell spaces and the supernet engine. torch only."""
