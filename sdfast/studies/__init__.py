"""The paper's tables and figures, and the comparison on one's own data, as runnable studies."""
