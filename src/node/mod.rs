//! The runtime of a member: threads, queues and clocks. No rules of etcd's are decided here.

mod handle;

pub use handle::{Handle, HashKv, Member, Status, WatchStream};
