//! etcd's gRPC services.
