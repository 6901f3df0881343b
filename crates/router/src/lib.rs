//! The router: from a data set to a run folder, and from a query to a department.
