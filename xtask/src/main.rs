//! Set-up, build, run, test, bench and dist for droptrace.

fn main() {}
