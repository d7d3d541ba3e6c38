//! What etcd's protos say: which path is for which method, and what its messages are made of.

use std::collections::HashMap;
use std::sync::LazyLock;

use http::Uri;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use starling_proto::FILE_DESCRIPTOR_SET;

/// The annotation that maps a method to paths, and the fields of it that are used.
const HTTP_ANNOTATION: &str = "google.api.http";
const POST: &str = "post";
const MORE: &str = "additional_bindings";

/// A method, as HTTP knows it.
#[derive(Debug)]
pub(super) struct Route {
    /// As gRPC knows it.
    pub(super) uri: Uri,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    /// Whether it takes a stream of requests.
    pub(super) takes_stream: bool,
    /// Whether it gives a stream of answers.
    pub(super) gives_stream: bool,
}

impl Route {
    fn of(method: &MethodDescriptor) -> Self {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        Self {
            uri: Uri::try_from(path).expect("names of services and methods are plain"),
            input: method.input(),
            output: method.output(),
            takes_stream: method.is_client_streaming(),
            gives_stream: method.is_server_streaming(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Schema {
    routes: HashMap<String, Route>,
}

/// Unpacked on first use, for all threads.
pub(super) fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::unpack);
    &SCHEMA
}

impl Schema {
    fn unpack() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)
            .expect("the descriptors were made by the build");
        let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let routes = methods.flat_map(|method| {
            paths(&pool, &method).into_iter().map(move |path| (path, Route::of(&method)))
        });
        Self { routes: routes.collect() }
    }

    pub(super) fn route(&self, path: &str) -> Option<&Route> {
        self.routes.get(path)
    }
}

/// The paths of a method: none, one, or one and others.
fn paths(pool: &DescriptorPool, method: &MethodDescriptor) -> Vec<String> {
    let annotation =
        pool.get_extension_by_name(HTTP_ANNOTATION).expect("the build takes the annotation along");
    let options = method.options();
    if !options.has_extension(&annotation) {
        return Vec::new();
    }
    let rule = options.get_extension(&annotation);
    rule.as_message().map(paths_of_rule).unwrap_or_default()
}

fn paths_of_rule(rule: &DynamicMessage) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned).filter(|text| !text.is_empty());
    let path = rule.get_field_by_name(POST).and_then(|path| text(&path));
    let more = rule.get_field_by_name(MORE);
    let more = more.as_ref().and_then(|rules| rules.as_list()).unwrap_or_default();
    let more = more.iter().filter_map(Value::as_message).flat_map(paths_of_rule);
    path.into_iter().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_etcd_has_a_method() {
        let routes = &schema().routes;
        assert_eq!(routes.len(), 51);
        let route = |path| {
            let route = schema().route(path);
            route.map(|route| (route.uri.path(), route.takes_stream, route.gives_stream))
        };
        for (path, expected) in [
            ("/v3/kv/range", ("/etcdserverpb.KV/Range", false, false)),
            ("/v3/kv/compaction", ("/etcdserverpb.KV/Compact", false, false)),
            ("/v3/watch", ("/etcdserverpb.Watch/Watch", true, true)),
            ("/v3/lease/revoke", ("/etcdserverpb.Lease/LeaseRevoke", false, false)),
            ("/v3/kv/lease/revoke", ("/etcdserverpb.Lease/LeaseRevoke", false, false)),
            ("/v3/lease/keepalive", ("/etcdserverpb.Lease/LeaseKeepAlive", true, true)),
            ("/v3/maintenance/snapshot", ("/etcdserverpb.Maintenance/Snapshot", false, true)),
            ("/v3/maintenance/downgrade", ("/etcdserverpb.Maintenance/Downgrade", false, false)),
            ("/v3/auth/user/changepw", ("/etcdserverpb.Auth/UserChangePassword", false, false)),
            ("/v3/lock/lock", ("/v3lockpb.Lock/Lock", false, false)),
            ("/v3/election/observe", ("/v3electionpb.Election/Observe", false, true)),
        ] {
            assert_eq!(route(path), Some(expected), "{path}");
        }
        assert_eq!(route("/v3/kv/rangestream"), None);
        assert_eq!(route(""), None);
    }
}
