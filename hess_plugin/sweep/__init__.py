"""Methods compared at equal measured density, paired by scene."""
