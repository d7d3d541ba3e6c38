//! The integration tests of the server: one binary, one module a subject.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod attacks;
mod blocked;
mod cli;
mod cluster;
mod crash;
mod deploy;
mod disk;
mod faces;
mod floods;
mod forwarding;
mod gateway;
mod hostile;
mod joining;
mod leases;
mod member;
mod process;
mod shell;
mod sockets;
mod terminal;
mod tidy;
mod tls;
mod traces;
mod websocket;
