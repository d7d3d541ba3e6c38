//! Who clients are, and changes of users and roles.

use std::sync::Arc;

use tokio::sync::watch;

use super::handle::Handle;
use super::passwords;
use super::tokens::TokenOptions;
use crate::engine::auth::{Auth, AuthState};
use crate::engine::command::{AuthChange, Command, CommandReply, Reply};
use crate::error::{AuthError, Result};
use crate::storage::schema::auth::SECRET_BYTES;
use crate::types::Revision;

/// How clients say who they are.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// What kind of tokens there are.
    pub tokens: TokenOptions,
    /// The cost of a password's hash, of [`passwords::COSTS`].
    pub bcrypt_cost: u32,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self { tokens: TokenOptions::default(), bcrypt_cost: passwords::COST_DEFAULT }
    }
}

impl Handle {
    /// Users and roles.
    pub fn auth(&self) -> &Arc<Auth> {
        &self.shared.auth
    }

    /// Turns whenever users or roles have changed.
    pub fn auth_changes(&self) -> watch::Receiver<u64> {
        self.shared.auth_changes.subscribe()
    }

    /// Changes users or roles. Returns after its fsync.
    pub async fn change_auth(&self, change: AuthChange) -> Result<Revision> {
        match self.execute(Command::Auth(change)).await? {
            Reply { revision, body: CommandReply::Auth } => Ok(revision),
            other => unreachable!("a change of users got {other:?}"),
        }
    }

    /// Everybody has to say who they are from now on.
    pub async fn enable_auth(&self) -> Result<Revision> {
        let secret = rand::random::<[u8; SECRET_BYTES]>().to_vec().into();
        self.change_auth(AuthChange::Enable { secret }).await
    }

    /// The hash of a password.
    pub async fn hash_password(&self, password: String) -> Result<bytes::Bytes> {
        passwords::hash(password, self.shared.bcrypt_cost).await
    }

    /// A token for whoever knows this password.
    pub async fn authenticate(&self, user: String, password: String) -> Result<String> {
        let state = self.check_password(&user, password).await?;
        let wall_millis = self.shared.clock.now().wall_millis;
        Ok(self.shared.tokens.issue(&user, &state, wall_millis)?)
    }

    /// Whether somebody knows the password of a user, as of the state that it answers. Costs a hash.
    pub async fn check_password(&self, user: &str, password: String) -> Result<Arc<AuthState>> {
        let auth = self.auth();
        let hash = {
            let state = auth.state();
            if !state.is_enabled() {
                return Err(AuthError::NotEnabled.into());
            }
            match state.password(user) {
                Some(hash) => hash.clone(),
                None if state.has_user(user) => return Err(AuthError::NoPasswordUser.into()),
                None => return Err(AuthError::Failed.into()),
            }
        };
        if !passwords::verify(password, hash.clone()).await? {
            return Err(AuthError::Failed.into());
        }
        let state = auth.state();
        // It may have been changed while it was compared.
        if state.password(user) != Some(&hash) {
            return Err(AuthError::Failed.into());
        }
        Ok(state)
    }

    /// Whose token this is.
    pub fn whose_token(&self, token: &str, state: &AuthState) -> Result<String, AuthError> {
        self.shared.tokens.check(token, state, self.shared.clock.now().wall_millis)
    }
}
