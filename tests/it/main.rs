//! The integration tests of the server: one binary, one module a subject.

mod crash;
mod process;
