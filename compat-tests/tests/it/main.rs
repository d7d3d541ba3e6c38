//! See the crate's documentation for what is compared with what.

mod etcdctl;
mod raw;
