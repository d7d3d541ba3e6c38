//! The integration tests of the server: one binary, one module a subject.

mod api;
mod crash;
mod disk;
mod hostile;
mod member;
mod process;
mod tidy;
