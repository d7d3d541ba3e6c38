//! `etcdserverpb.Auth`: users, roles, and tokens for those who know a password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use starling_proto::authpb;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_server::Auth;
use tonic::{Request, Response, Status};

use super::{Context, header};
use crate::engine::auth::{Permission, PermissionType, ROOT};
use crate::engine::command::AuthChange;
use crate::error::AuthError;

/// As etcd shows that the role root may do everything.
const EVERYTHING: &[u8] = b"\0";

pub(crate) struct AuthService {
    context: Context,
}

impl AuthService {
    pub(crate) fn new(context: Context) -> Self {
        Self { context }
    }

    /// Does what only root may. Answers with the header of the reply.
    async fn change<T>(
        &self,
        request: Request<T>,
        change: impl FnOnce(T) -> Result<AuthChange, AuthError>,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        self.context.access(&request)?.admin()?;
        let change = change(request.into_inner())?;
        let revision = self.context.node.change_auth(change).await?;
        Ok(Some(header::at(&self.context.node, revision)))
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(header::current(&self.context.node))
    }

    /// The hash of a password, or the one that the client has made itself.
    async fn password(&self, password: String, hashed: &str) -> Result<Bytes, Status> {
        if !password.is_empty() || hashed.is_empty() {
            return Ok(self.context.node.hash_password(password).await?);
        }
        let hash = BASE64.decode(hashed);
        hash.map(Bytes::from).map_err(|error| Status::unknown(error.to_string()))
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let revision = self.context.node.enable_auth().await?;
        let header = Some(header::at(&self.context.node, revision));
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self.change(request, |_| Ok(AuthChange::Disable)).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        // Anybody may ask, but not with a wrong token.
        self.context.access(&request)?;
        let state = self.context.node.auth().state();
        Ok(Response::new(pb::AuthStatusResponse {
            header: self.header(),
            enabled: state.is_enabled(),
            auth_revision: state.revision(),
        }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.context.node.authenticate(name, password).await?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header(), token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        // Hashing takes long, and is not for anybody.
        self.context.access(&request)?.admin()?;
        let message = request.get_ref();
        let password = if message.options.as_ref().is_some_and(|options| options.no_password) {
            None
        } else {
            Some(self.password(message.password.clone(), &message.hashed_password).await?)
        };
        let add = |message: pb::AuthUserAddRequest| {
            Ok(AuthChange::AddUser { name: message.name, password })
        };
        let header = self.change(request, add).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let access = self.context.access(&request)?;
        let name = request.into_inner().name;
        if access.name() == Some(&name) {
            access.known()?;
        } else {
            access.admin()?;
        }
        let state = self.context.node.auth().state();
        if !state.has_user(&name) {
            return Err(AuthError::UserNotFound.into());
        }
        let roles = state.roles_of(&name).cloned().collect();
        Ok(Response::new(pb::AuthUserGetResponse { header: self.header(), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let users = self.context.node.auth().state().users().cloned().collect();
        Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let delete =
            |message: pb::AuthUserDeleteRequest| Ok(AuthChange::DeleteUser { name: message.name });
        let header = self.change(request, delete).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let message = request.get_ref();
        let password = self.password(message.password.clone(), &message.hashed_password).await?;
        let change = |message: pb::AuthUserChangePasswordRequest| {
            Ok(AuthChange::ChangePassword { name: message.name, password: Some(password) })
        };
        let header = self.change(request, change).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let grant =
            |pb::AuthUserGrantRoleRequest { user, role }| Ok(AuthChange::GrantRole { user, role });
        let header = self.change(request, grant).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let revoke = |pb::AuthUserRevokeRoleRequest { name: user, role }| {
            Ok(AuthChange::RevokeRole { user, role })
        };
        let header = self.change(request, revoke).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let add = |message: pb::AuthRoleAddRequest| Ok(AuthChange::AddRole { name: message.name });
        let header = self.change(request, add).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let access = self.context.access(&request)?;
        let role = request.into_inner().role;
        let state = self.context.node.auth().state();
        if access.name().is_some_and(|user| state.has_role_of(user, &role)) {
            access.known()?;
        } else {
            access.admin()?;
        }
        if !state.has_role(&role) {
            return Err(AuthError::RoleNotFound.into());
        }
        let perm = if role == ROOT {
            let (key, range_end) = (Bytes::new(), Bytes::from_static(EVERYTHING));
            vec![shown(Permission { kind: PermissionType::ReadWrite, key, range_end })]
        } else {
            state.permissions(&role).map(shown).collect()
        };
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.header(), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.context.access(&request)?.admin()?;
        let roles = self.context.node.auth().state().roles().cloned().collect();
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let delete =
            |message: pb::AuthRoleDeleteRequest| Ok(AuthChange::DeleteRole { name: message.role });
        let header = self.change(request, delete).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let grant = |message: pb::AuthRoleGrantPermissionRequest| {
            let permission = message.perm.ok_or(AuthError::PermissionNotGiven)?;
            let permission = read(permission)?;
            Ok(AuthChange::GrantPermission { role: message.name, permission })
        };
        let header = self.change(request, grant).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let revoke = |pb::AuthRoleRevokePermissionRequest { role, key, range_end }| {
            Ok(AuthChange::RevokePermission { role, key, range_end })
        };
        let header = self.change(request, revoke).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}

fn read(permission: authpb::Permission) -> Result<Permission, AuthError> {
    let kind = PermissionType::from_number(permission.perm_type);
    let kind = kind.ok_or(AuthError::InvalidManagement)?;
    Ok(Permission { kind, key: permission.key, range_end: permission.range_end })
}

fn shown(permission: Permission) -> authpb::Permission {
    let Permission { kind, key, range_end } = permission;
    authpb::Permission { perm_type: kind as i32, key, range_end }
}
