//! What etcd clients may observe.

pub mod command;
pub mod watch;
