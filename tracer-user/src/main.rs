//! The `droptrace` command.

fn main() {}
