//! Users, roles, permissions and tokens.

use std::fmt::Debug;

use prost::Message;
use prost::bytes::Bytes;
use starling_proto::authpb::{Permission, UserAddOptions};
use starling_proto::etcdserverpb as pb;
use starling_proto::{v3electionpb, v3lockpb};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::case::{Answers, Case, bytes, delete, get, in_time, put, range, watch};
use super::cases;

const READ: i32 = 0;
const WRITE: i32 = 1;
const READWRITE: i32 = 2;

#[test]
fn users_and_roles_are_those_of_etcd() {
    super::compare(cases![users roles grants permissions enabling]);
}

#[test]
fn everybody_may_do_what_they_may_with_etcd() {
    super::compare_with(&["--bcrypt-cost=4"], cases![everything_by_everybody]);
}

#[test]
fn tokens_are_good_as_long_as_with_etcd() {
    super::compare_with(&["--bcrypt-cost=4"], cases![tokens_end leases_of_others branches watches]);
}

/// Asks anything, as somebody.
async fn ask<Q, A>(
    case: &mut Case,
    label: &str,
    path: &'static str,
    token: &str,
    message: Q,
) -> Option<A>
where
    Q: Message + 'static,
    A: Message + Default + Clone + Debug + 'static,
{
    let mut client = Grpc::new(case.channel.clone());
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("text"));
    }
    let answer = in_time(async {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let codec: ProstCodec<Q, A> = ProstCodec::new();
        client.unary(request, PathAndQuery::from_static(path), codec).await
    })
    .await;
    let kept = answer.as_ref().ok().map(|answer| answer.get_ref().clone());
    case.keep(label, answer, |show, answer| show.debug(&format!("{answer:?}")));
    kept
}

macro_rules! auth {
    ($case:expr, $token:expr, $label:expr, $method:literal, $message:expr, $answer:ty) => {
        ask::<_, $answer>(
            $case,
            &format!("{} {}", $method, $label),
            concat!("/etcdserverpb.Auth/", $method),
            $token,
            $message,
        )
        .await
    };
}

fn user(name: &str, password: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

async fn add_user(case: &mut Case, token: &str, name: &str, password: &str) {
    auth!(case, token, name, "UserAdd", user(name, password), pb::AuthUserAddResponse);
}

async fn add_role(case: &mut Case, token: &str, name: &str) {
    let request = pb::AuthRoleAddRequest { name: name.into() };
    auth!(case, token, name, "RoleAdd", request, pb::AuthRoleAddResponse);
}

async fn grant(case: &mut Case, token: &str, user: &str, role: &str) {
    let request = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    let label = format!("{user} {role}");
    auth!(case, token, label, "UserGrantRole", request, pb::AuthUserGrantRoleResponse);
}

async fn permit(case: &mut Case, token: &str, role: &str, kind: i32, key: &str, end: &str) {
    let perm = Permission { perm_type: kind, key: bytes(key), range_end: bytes(end) };
    let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    let label = format!("{role} {kind} {key:?} {end:?}");
    auth!(case, token, label, "RoleGrantPermission", request, pb::AuthRoleGrantPermissionResponse);
}

async fn state(case: &mut Case, token: &str) {
    auth!(case, token, "", "UserList", pb::AuthUserListRequest {}, pb::AuthUserListResponse);
    auth!(case, token, "", "RoleList", pb::AuthRoleListRequest {}, pb::AuthRoleListResponse);
    auth!(case, token, "", "AuthStatus", pb::AuthStatusRequest {}, pb::AuthStatusResponse);
}

async fn user_get(case: &mut Case, token: &str, name: &str) {
    let request = pb::AuthUserGetRequest { name: name.into() };
    auth!(case, token, name, "UserGet", request, pb::AuthUserGetResponse);
}

async fn role_get(case: &mut Case, token: &str, role: &str) {
    let request = pb::AuthRoleGetRequest { role: role.into() };
    auth!(case, token, role, "RoleGet", request, pb::AuthRoleGetResponse);
}

async fn delete_user(case: &mut Case, token: &str, name: &str) {
    let request = pb::AuthUserDeleteRequest { name: name.into() };
    auth!(case, token, name, "UserDelete", request, pb::AuthUserDeleteResponse);
}

async fn delete_role(case: &mut Case, token: &str, role: &str) {
    let request = pb::AuthRoleDeleteRequest { role: role.into() };
    auth!(case, token, role, "RoleDelete", request, pb::AuthRoleDeleteResponse);
}

async fn change_password(case: &mut Case, token: &str, name: &str, password: &str) {
    let request = pb::AuthUserChangePasswordRequest {
        name: name.into(),
        password: password.into(),
        ..Default::default()
    };
    auth!(case, token, name, "UserChangePassword", request, pb::AuthUserChangePasswordResponse);
}

async fn authenticate(case: &mut Case, name: &str, password: &str) -> String {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    let label = format!("{name} {password}");
    let answer = auth!(case, "", label, "Authenticate", request, pb::AuthenticateResponse);
    answer.map_or_else(String::new, |answer| answer.token)
}

async fn users(case: &mut Case) {
    add_user(case, "", "", "").await;
    add_user(case, "", "", "password").await;
    add_user(case, "", "ann", "password").await;
    add_user(case, "", "ann", "other").await;
    add_user(case, "", "empty", "").await;
    add_user(case, "", "long", &"p".repeat(72)).await;
    add_user(case, "", "longer", &"p".repeat(73)).await;
    let options = Some(UserAddOptions { no_password: true });
    let nobody = pb::AuthUserAddRequest { options, ..user("card", "") };
    auth!(case, "", "without a password", "UserAdd", nobody.clone(), pb::AuthUserAddResponse);
    let both =
        pb::AuthUserAddRequest { name: "both".into(), password: "password".into(), ..nobody };
    auth!(case, "", "with one that does not count", "UserAdd", both, pb::AuthUserAddResponse);
    user_get(case, "", "ann").await;
    user_get(case, "", "nobody").await;
    user_get(case, "", "").await;
    state(case, "").await;
    change_password(case, "", "ann", "new").await;
    change_password(case, "", "card", "new").await;
    change_password(case, "", "nobody", "new").await;
    change_password(case, "", "ann", "").await;
    for name in ["nobody", "empty", "long", "longer", "card", "both", "ann"] {
        delete_user(case, "", name).await;
    }
    state(case, "").await;
    authenticate(case, "ann", "new").await;
}

async fn roles(case: &mut Case) {
    add_role(case, "", "").await;
    add_role(case, "", "reader").await;
    add_role(case, "", "reader").await;
    role_get(case, "", "reader").await;
    role_get(case, "", "nothing").await;
    role_get(case, "", "").await;
    role_get(case, "", "root").await;
    add_role(case, "", "root").await;
    role_get(case, "", "root").await;
    state(case, "").await;
    delete_role(case, "", "nothing").await;
    delete_role(case, "", "reader").await;
    delete_role(case, "", "root").await;
    state(case, "").await;
}

async fn grants(case: &mut Case) {
    add_user(case, "", "ann", "password").await;
    for role in ["b", "a", "c"] {
        add_role(case, "", role).await;
        grant(case, "", "ann", role).await;
    }
    grant(case, "", "ann", "a").await;
    grant(case, "", "nobody", "a").await;
    grant(case, "", "ann", "nothing").await;
    grant(case, "", "ann", "root").await;
    user_get(case, "", "ann").await;
    state(case, "").await;
    for (name, role) in
        [("ann", "a"), ("ann", "a"), ("nobody", "b"), ("ann", "nothing"), ("ann", "root")]
    {
        let request = pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
        let label = format!("{name} {role}");
        auth!(case, "", label, "UserRevokeRole", request, pb::AuthUserRevokeRoleResponse);
    }
    user_get(case, "", "ann").await;
    delete_role(case, "", "b").await;
    user_get(case, "", "ann").await;
    delete_user(case, "", "ann").await;
    // A new user of the same name has none of it.
    add_user(case, "", "ann", "password").await;
    user_get(case, "", "ann").await;
    delete_user(case, "", "ann").await;
    delete_role(case, "", "a").await;
    delete_role(case, "", "c").await;
    state(case, "").await;
}

async fn permissions(case: &mut Case) {
    add_role(case, "", "r").await;
    for (kind, key, end) in [
        (READ, "k", ""),
        (WRITE, "a", "m"),
        (READWRITE, "z", "\0"),
        (READ, "a", ""),
        (READ, "b", "b"),
        (READ, "b", "a"),
        (READ, "", ""),
        (READ, "", "x"),
        (READ, "", "\0"),
        (READ, "\0", "\0"),
        (WRITE, "k", ""),
        (READWRITE, "a", "m"),
        (READ, "a", "\0"),
    ] {
        permit(case, "", "r", kind, key, end).await;
    }
    permit(case, "", "nothing", READ, "k", "").await;
    permit(case, "", "nothing", READ, "", "").await;
    let nil = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    auth!(case, "", "of nothing", "RoleGrantPermission", nil, pb::AuthRoleGrantPermissionResponse);
    role_get(case, "", "r").await;
    state(case, "").await;
    for (role, key, end) in [
        ("r", "k", ""),
        ("r", "k", ""),
        ("r", "a", "n"),
        ("r", "a", "m"),
        ("nothing", "a", "m"),
        ("r", "", ""),
    ] {
        let request = pb::AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: bytes(key),
            range_end: bytes(end),
        };
        let label = format!("{role} {key:?} {end:?}");
        auth!(
            case,
            "",
            label,
            "RoleRevokePermission",
            request,
            pb::AuthRoleRevokePermissionResponse
        );
    }
    role_get(case, "", "r").await;
    delete_role(case, "", "r").await;
    add_role(case, "", "r").await;
    role_get(case, "", "r").await;
    delete_role(case, "", "r").await;
}

async fn enable(case: &mut Case, token: &str) {
    auth!(case, token, "", "AuthEnable", pb::AuthEnableRequest {}, pb::AuthEnableResponse);
}

async fn disable(case: &mut Case, token: &str) {
    auth!(case, token, "", "AuthDisable", pb::AuthDisableRequest {}, pb::AuthDisableResponse);
}

async fn enabling(case: &mut Case) {
    disable(case, "").await;
    enable(case, "").await;
    add_user(case, "", "root", "secret").await;
    enable(case, "").await;
    grant(case, "", "root", "root").await;
    state(case, "").await;
    enable(case, "").await;
    state(case, "").await;
    enable(case, "").await;
    disable(case, "").await;
    for (name, password) in [("root", "wrong"), ("root", ""), ("nobody", "secret"), ("", "")] {
        authenticate(case, name, password).await;
    }
    let root = authenticate(case, "root", "secret").await;
    state(case, &root).await;
    enable(case, &root).await;
    state(case, &root).await;
    // What is not to be done any more.
    delete_user(case, &root, "root").await;
    delete_role(case, &root, "root").await;
    add_role(case, &root, "root").await;
    delete_role(case, &root, "root").await;
    let revoke = pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    auth!(case, &root, "root root", "UserRevokeRole", revoke, pb::AuthUserRevokeRoleResponse);
    disable(case, &root).await;
    state(case, &root).await;
    disable(case, "").await;
    delete_user(case, "", "root").await;
    delete_role(case, "", "root").await;
    state(case, "").await;
}

/// Root, and ann, who may read what begins with r and write what begins with w. Answers their tokens.
async fn begin(case: &mut Case) -> (String, String) {
    for key in ["r1", "w1", "b1", "x1"] {
        case.set(key, "1").await;
    }
    add_user(case, "", "root", "secret").await;
    grant(case, "", "root", "root").await;
    add_user(case, "", "ann", "password").await;
    add_user(case, "", "bob", "password").await;
    for (role, kind, key, end) in
        [("reader", READ, "r", "s"), ("writer", WRITE, "w", "x"), ("both", READWRITE, "b", "c")]
    {
        add_role(case, "", role).await;
        permit(case, "", role, kind, key, end).await;
        grant(case, "", "ann", role).await;
    }
    enable(case, "").await;
    (authenticate(case, "root", "secret").await, authenticate(case, "ann", "password").await)
}

async fn end(case: &mut Case, root: &str) {
    disable(case, root).await;
    for name in ["root", "ann", "bob"] {
        delete_user(case, "", name).await;
    }
    for role in ["reader", "writer", "both"] {
        delete_role(case, "", role).await;
    }
}

async fn everything_by_everybody(case: &mut Case) {
    let (root, ann) = begin(case).await;
    let bob = authenticate(case, "bob", "password").await;
    for (who, token) in
        [("nobody", ""), ("a stranger", "wrong.1"), ("bob", &bob), ("ann", &ann), ("root", &root)]
    {
        everything(case, who, token).await;
    }
    end(case, &root).await;
}

macro_rules! rpc {
    ($case:expr, $who:expr, $token:expr, $label:expr, $path:literal, $message:expr, $answer:ty) => {
        ask::<_, $answer>(
            $case,
            &format!("{}: {} {}", $who, $path, $label),
            $path,
            $token,
            $message,
        )
        .await
    };
}

async fn everything(case: &mut Case, who: &str, token: &str) {
    for key in ["r1", "w1", "b1", "x1"] {
        rpc!(case, who, token, key, "/etcdserverpb.KV/Range", get(key), pb::RangeResponse);
        rpc!(case, who, token, key, "/etcdserverpb.KV/Put", put(key, "2"), pb::PutResponse);
        let prev = pb::PutRequest { prev_kv: true, ..put(key, "3") };
        rpc!(
            case,
            who,
            token,
            format!("{key} and before"),
            "/etcdserverpb.KV/Put",
            prev,
            pb::PutResponse
        );
        let gone = pb::DeleteRangeRequest { prev_kv: true, ..delete(format!("{key}0"), "") };
        rpc!(
            case,
            who,
            token,
            format!("{key} and before"),
            "/etcdserverpb.KV/DeleteRange",
            gone,
            pb::DeleteRangeResponse
        );
        rpc!(
            case,
            who,
            token,
            key,
            "/etcdserverpb.KV/DeleteRange",
            delete(format!("{key}0"), ""),
            pb::DeleteRangeResponse
        );
    }
    for (from, to) in
        [("r", "s"), ("r", "t"), ("r1", "r1"), ("ra", "rb"), ("b", "s"), ("\0", "\0"), ("r2", "r1")]
    {
        let label = format!("{from:?} {to:?}");
        let serializable = pb::RangeRequest { serializable: true, ..range(from, to) };
        rpc!(case, who, token, label, "/etcdserverpb.KV/Range", serializable, pb::RangeResponse);
        rpc!(case, who, token, label, "/etcdserverpb.KV/Range", range(from, to), pb::RangeResponse);
    }
    // The form is looked at first.
    rpc!(case, who, token, "of no key", "/etcdserverpb.KV/Range", get(""), pb::RangeResponse);
    rpc!(case, who, token, "of no key", "/etcdserverpb.KV/Put", put("", ""), pb::PutResponse);
    rpc!(
        case,
        who,
        token,
        "nothing",
        "/etcdserverpb.KV/Txn",
        pb::TxnRequest::default(),
        pb::TxnResponse
    );
    let compact = pb::CompactionRequest { revision: case.revision(1), physical: false };
    rpc!(case, who, token, "", "/etcdserverpb.KV/Compact", compact, pb::CompactionResponse);

    let grant = pb::LeaseGrantRequest { id: 77, ttl: 600 };
    rpc!(case, who, token, "", "/etcdserverpb.Lease/LeaseGrant", grant, pb::LeaseGrantResponse);
    for keys in [false, true] {
        let ttl = pb::LeaseTimeToLiveRequest { id: 77, keys };
        let label = format!("{keys}");
        ask::<_, pb::LeaseTimeToLiveResponse>(
            case,
            &format!("{who}: ttl {label}"),
            "/etcdserverpb.Lease/LeaseTimeToLive",
            token,
            ttl,
        )
        .await;
    }
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Lease/LeaseLeases",
        pb::LeaseLeasesRequest {},
        pb::LeaseLeasesResponse
    );
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Lease/LeaseRevoke",
        pb::LeaseRevokeRequest { id: 77 },
        pb::LeaseRevokeResponse
    );
    rpc!(
        case,
        who,
        token,
        "of none",
        "/etcdserverpb.Lease/LeaseRevoke",
        pb::LeaseRevokeRequest { id: 99 },
        pb::LeaseRevokeResponse
    );

    rpc!(
        case,
        who,
        token,
        "get",
        "/etcdserverpb.Maintenance/Alarm",
        pb::AlarmRequest::default(),
        pb::AlarmResponse
    );
    let activate = pb::AlarmRequest { action: 1, member_id: 0, alarm: 0 };
    rpc!(
        case,
        who,
        token,
        "activate",
        "/etcdserverpb.Maintenance/Alarm",
        activate,
        pb::AlarmResponse
    );
    let deactivate = pb::AlarmRequest { action: 2, member_id: 0, alarm: 1 };
    rpc!(
        case,
        who,
        token,
        "deactivate",
        "/etcdserverpb.Maintenance/Alarm",
        deactivate,
        pb::AlarmResponse
    );
    refused(case, who, token, "/etcdserverpb.Maintenance/Status", pb::StatusRequest {}).await;
    refused(case, who, token, "/etcdserverpb.Maintenance/Defragment", pb::DefragmentRequest {})
        .await;
    refused(case, who, token, "/etcdserverpb.Maintenance/Hash", pb::HashRequest {}).await;
    refused(case, who, token, "/etcdserverpb.Maintenance/HashKV", pb::HashKvRequest::default())
        .await;
    refused(case, who, token, "/etcdserverpb.Cluster/MemberList", pb::MemberListRequest::default())
        .await;
    refused(case, who, token, "/etcdserverpb.Cluster/MemberAdd", pb::MemberAddRequest::default())
        .await;
    refused(
        case,
        who,
        token,
        "/etcdserverpb.Cluster/MemberRemove",
        pb::MemberRemoveRequest { id: 1 },
    )
    .await;
    refused(
        case,
        who,
        token,
        "/etcdserverpb.Cluster/MemberUpdate",
        pb::MemberUpdateRequest { id: 1, peer_ur_ls: vec!["http://127.0.0.1:1".into()] },
    )
    .await;
    refused(
        case,
        who,
        token,
        "/etcdserverpb.Cluster/MemberPromote",
        pb::MemberPromoteRequest { id: 1 },
    )
    .await;

    for name in ["ann", "root", "nobody"] {
        let request = pb::AuthUserGetRequest { name: name.into() };
        rpc!(
            case,
            who,
            token,
            name,
            "/etcdserverpb.Auth/UserGet",
            request,
            pb::AuthUserGetResponse
        );
    }
    for role in ["reader", "root", "nothing"] {
        let request = pb::AuthRoleGetRequest { role: role.into() };
        rpc!(
            case,
            who,
            token,
            role,
            "/etcdserverpb.Auth/RoleGet",
            request,
            pb::AuthRoleGetResponse
        );
    }
    for name in ["ann", "new"] {
        rpc!(
            case,
            who,
            token,
            name,
            "/etcdserverpb.Auth/UserAdd",
            user(name, "x"),
            pb::AuthUserAddResponse
        );
        let gone = pb::AuthUserDeleteRequest { name: "new".into() };
        rpc!(
            case,
            who,
            token,
            "new",
            "/etcdserverpb.Auth/UserDelete",
            gone,
            pb::AuthUserDeleteResponse
        );
    }
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Auth/UserList",
        pb::AuthUserListRequest {},
        pb::AuthUserListResponse
    );
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Auth/RoleList",
        pb::AuthRoleListRequest {},
        pb::AuthRoleListResponse
    );
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Auth/AuthStatus",
        pb::AuthStatusRequest {},
        pb::AuthStatusResponse
    );
    rpc!(
        case,
        who,
        token,
        "",
        "/etcdserverpb.Auth/AuthEnable",
        pb::AuthEnableRequest {},
        pb::AuthEnableResponse
    );

    for (name, lease) in [("b/lock", 78), ("x/lock", 79)] {
        let grant = pb::LeaseGrantRequest { id: lease, ttl: 600 };
        rpc!(
            case,
            who,
            token,
            lease,
            "/etcdserverpb.Lease/LeaseGrant",
            grant,
            pb::LeaseGrantResponse
        );
        let lock = v3lockpb::LockRequest { name: bytes(name), lease };
        rpc!(case, who, token, name, "/v3lockpb.Lock/Lock", lock, v3lockpb::LockResponse);
        let unlock = v3lockpb::UnlockRequest { key: Bytes::from(format!("{name}/{lease:x}")) };
        rpc!(case, who, token, name, "/v3lockpb.Lock/Unlock", unlock, v3lockpb::UnlockResponse);
        let campaign =
            v3electionpb::CampaignRequest { name: bytes(name), lease, value: bytes("v") };
        rpc!(
            case,
            who,
            token,
            name,
            "/v3electionpb.Election/Campaign",
            campaign,
            v3electionpb::CampaignResponse
        );
        let leader = v3electionpb::LeaderRequest { name: bytes(name) };
        rpc!(
            case,
            who,
            token,
            name,
            "/v3electionpb.Election/Leader",
            leader,
            v3electionpb::LeaderResponse
        );
        rpc!(
            case,
            who,
            token,
            lease,
            "/etcdserverpb.Lease/LeaseRevoke",
            pb::LeaseRevokeRequest { id: lease },
            pb::LeaseRevokeResponse
        );
    }
}

/// Whether somebody is refused; what others are told has numbers of its own.
async fn refused<Q: Message + 'static>(
    case: &mut Case,
    who: &str,
    token: &str,
    path: &'static str,
    message: Q,
) {
    let mut client = Grpc::new(case.channel.clone());
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("text"));
    }
    let answer = in_time(async {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let codec: ProstCodec<Q, pb::StatusRequest> = ProstCodec::new();
        client.unary(request, PathAndQuery::from_static(path), codec).await
    })
    .await;
    case.keep(&format!("{who}: {path}"), answer, |_, _| "done".to_owned());
}

async fn read(case: &mut Case, who: &str, token: &str, label: &str, key: &str) {
    rpc!(case, who, token, label, "/etcdserverpb.KV/Range", get(key), pb::RangeResponse);
}

async fn tokens_end(case: &mut Case) {
    let (root, ann) = begin(case).await;
    let again = authenticate(case, "ann", "password").await;
    for token in [&ann, &again] {
        read(case, "ann", token, "", "r1").await;
    }
    read(case, "ann", &format!("Bearer {ann}"), "as bearer", "r1").await;
    for wrong in [&ann[..ann.len() - 1], "nonsense", ".", "a.b.c"] {
        read(case, "a wrong token", wrong, "", "r1").await;
    }
    // Other people's changes do not matter, a new password does.
    change_password(case, &root, "bob", "new").await;
    read(case, "ann", &ann, "after bob's", "r1").await;
    change_password(case, &root, "ann", "new").await;
    for token in [&ann, &again] {
        read(case, "ann", token, "after hers", "r1").await;
    }
    authenticate(case, "ann", "password").await;
    let ann = authenticate(case, "ann", "new").await;
    let revoke = pb::AuthUserRevokeRoleRequest { name: "ann".into(), role: "reader".into() };
    auth!(case, &root, "ann reader", "UserRevokeRole", revoke, pb::AuthUserRevokeRoleResponse);
    read(case, "ann", &ann, "without a role", "r1").await;
    read(case, "ann", &ann, "with another", "b1").await;
    delete_user(case, &root, "ann").await;
    read(case, "ann", &ann, "who is no more", "b1").await;
    add_user(case, &root, "ann", "new").await;
    read(case, "ann", &ann, "who is new", "b1").await;
    disable(case, &root).await;
    read(case, "anybody", &ann, "", "x1").await;
    read(case, "a stranger", "wrong.1", "", "x1").await;
    enable(case, "").await;
    read(case, "root", &root, "from before", "x1").await;
    let root = authenticate(case, "root", "secret").await;
    end(case, &root).await;
}

async fn leases_of_others(case: &mut Case) {
    let (root, ann) = begin(case).await;
    for (lease, key) in [(1001, "w5"), (1002, "x5"), (1003, "r5"), (1004, "b5")] {
        let grant = pb::LeaseGrantRequest { id: lease, ttl: 600 };
        rpc!(
            case,
            "root",
            &root,
            lease,
            "/etcdserverpb.Lease/LeaseGrant",
            grant,
            pb::LeaseGrantResponse
        );
        let put = pb::PutRequest { lease, ..put(key, "1") };
        rpc!(case, "root", &root, key, "/etcdserverpb.KV/Put", put, pb::PutResponse);
    }
    for lease in [1001, 1002, 1003, 1004, 1005] {
        let mine = pb::PutRequest { lease, ..put("w6", "1") };
        rpc!(case, "ann", &ann, lease, "/etcdserverpb.KV/Put", mine, pb::PutResponse);
        for keys in [false, true] {
            let ttl = pb::LeaseTimeToLiveRequest { id: lease, keys };
            rpc!(
                case,
                "ann",
                &ann,
                format!("{lease} {keys}"),
                "/etcdserverpb.Lease/LeaseTimeToLive",
                ttl,
                pb::LeaseTimeToLiveResponse
            );
        }
        keep_alive(case, "nobody", "", lease).await;
        keep_alive(case, "ann", &ann, lease).await;
        rpc!(
            case,
            "ann",
            &ann,
            lease,
            "/etcdserverpb.Lease/LeaseLeases",
            pb::LeaseLeasesRequest {},
            pb::LeaseLeasesResponse
        );
    }
    for lease in [1001, 1002, 1003, 1004] {
        rpc!(
            case,
            "ann",
            &ann,
            lease,
            "/etcdserverpb.Lease/LeaseRevoke",
            pb::LeaseRevokeRequest { id: lease },
            pb::LeaseRevokeResponse
        );
        rpc!(
            case,
            "root",
            &root,
            lease,
            "/etcdserverpb.Lease/LeaseRevoke",
            pb::LeaseRevokeRequest { id: lease },
            pb::LeaseRevokeResponse
        );
    }
    end(case, &root).await;
}

async fn keep_alive(case: &mut Case, who: &str, token: &str, id: i64) {
    let mut client = Grpc::new(case.channel.clone());
    let mut request = Request::new(tokio_stream::once(pb::LeaseKeepAliveRequest { id }));
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("text"));
    }
    let mut answers = Answers::of(async move {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let codec: ProstCodec<_, pb::LeaseKeepAliveResponse> = ProstCodec::new();
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        client.streaming(request, path, codec).await
    });
    let answer = answers.next().await;
    case.keep(&format!("{who}: keep alive {id}"), answer, |show, answer| {
        show.debug(&format!("{answer:?}"))
    });
}

async fn branches(case: &mut Case) {
    use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
    let (root, ann) = begin(case).await;
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    let compare = |key: &str| vec![pb::Compare { key: bytes(key), ..Default::default() }];
    let txn = |compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>, failure| pb::TxnRequest {
        compare,
        success,
        failure,
    };
    let table = [
        ("compares what she may read", txn(compare("r1"), vec![], vec![])),
        ("compares what she may not read", txn(compare("x1"), vec![], vec![])),
        ("compares what she may only write", txn(compare("w1"), vec![], vec![])),
        ("reads", txn(vec![], op(RequestRange(get("r1"))), vec![])),
        (
            "does not read in the other branch",
            txn(vec![], op(RequestRange(get("r1"))), op(RequestRange(get("x1")))),
        ),
        ("writes", txn(vec![], op(RequestPut(put("w1", "t"))), vec![])),
        ("writes what she may only read", txn(vec![], op(RequestPut(put("r1", "t"))), vec![])),
        (
            "writes and sees what was before",
            txn(vec![], op(RequestPut(pb::PutRequest { prev_kv: true, ..put("w1", "t") })), vec![]),
        ),
        ("deletes", txn(vec![], op(RequestDeleteRange(delete("w1", "w2"))), vec![])),
        ("deletes too much", txn(vec![], op(RequestDeleteRange(delete("w1", "y"))), vec![])),
        (
            "nests",
            txn(
                vec![],
                op(RequestTxn(txn(vec![], op(RequestPut(put("b1", "t"))), vec![]))),
                vec![],
            ),
        ),
        (
            "nests what she may not",
            txn(
                vec![],
                op(RequestTxn(txn(vec![], op(RequestPut(put("x1", "t"))), vec![]))),
                vec![],
            ),
        ),
        (
            "nests a compare that she may not",
            txn(vec![], vec![], op(RequestTxn(txn(compare("x1"), vec![], vec![])))),
        ),
    ];
    for (what, txn) in table {
        rpc!(case, "ann", &ann, what, "/etcdserverpb.KV/Txn", txn.clone(), pb::TxnResponse);
        rpc!(case, "nobody", "", what, "/etcdserverpb.KV/Txn", txn, pb::TxnResponse);
    }
    end(case, &root).await;
}

async fn watches(case: &mut Case) {
    let (root, ann) = begin(case).await;
    for (who, token) in [("nobody", ""), ("a stranger", "wrong.1"), ("ann", &ann), ("root", &root)]
    {
        for (from, to) in [("r1", ""), ("r", "s"), ("w1", ""), ("x1", ""), ("r", "t"), ("\0", "\0")]
        {
            let label = format!("{who} watches {from:?} {to:?}");
            let mut stream = case.watch_as(token);
            stream.create(watch(from, to)).await;
            case.items(&label, &mut stream, 1).await;
        }
    }
    end(case, &root).await;
}
