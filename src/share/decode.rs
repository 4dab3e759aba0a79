//! Solves the equations of shares: an online Gauss-Jordan elimination with a byte budget.
