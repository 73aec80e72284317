"""Other ways to make global attention cheaper, through the same hooks as HeSS, to compare it with."""
