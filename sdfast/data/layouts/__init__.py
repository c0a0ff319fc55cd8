"""Image data sets of Lee et al. (2023) as their archives unpack, known by their files and with the paper's splits."""
