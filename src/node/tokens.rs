//! Tokens: by them clients say who they are, once they have said their password.
//!
//! *Simple* tokens, the default, name the user and when they were issued, and are signed with the secret of the cluster and the
//! hash of the user's password. So every member takes those of all others without having to remember any, and a new password, or
//! disabling authentication, makes them worthless. A token is good for its time to live after it was last used; where it
//! was used a member remembers itself.
//!
//! *JWT* are signed by a key that whoever runs the cluster has given to the members, or only to who issues them. They name the
//! revision of users and roles; one from before a change has to be renewed.
//!
//! Source: etcd `server/auth/simple_token.go`, `jwt.go`, `options.go`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::{Buf, BufMut};
use jsonwebtoken as jwt;
use parking_lot::Mutex;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::engine::auth::AuthState;
use crate::error::AuthError;

/// The bytes of a signature that a simple token has.
const SIGNATURE_BYTES: usize = 16;
/// What tells two tokens of one moment apart.
const NONCE_BYTES: usize = 8;
/// Tokens in use that are remembered. Further ones are good from when they were issued only.
const USED_MAX: usize = 100_000;
/// The use of a token is noted once in so much time.
const NOTE_MILLIS: u64 = 1000;
/// Nobody's user name is so long that its token would not fit into a header.
const TOKEN_BYTES_MAX: usize = 4096;

/// What kind of tokens there are.
#[derive(Clone)]
pub enum TokenOptions {
    /// Simple ones.
    Simple {
        /// How long one is good after its last use.
        ttl: Duration,
    },
    /// JWT.
    Jwt(Box<JwtOptions>),
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self::Simple { ttl: Duration::from_secs(300) }
    }
}

/// How JWT are signed.
#[derive(Clone)]
pub struct JwtOptions {
    /// By which method.
    pub algorithm: jwt::Algorithm,
    /// How long one is good.
    pub ttl: Duration,
    /// What it is verified with.
    pub verifies: jwt::DecodingKey,
    /// What it is signed with; `None` where none are issued.
    pub signs: Option<jwt::EncodingKey>,
}

impl fmt::Debug for TokenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simple { ttl } => f.debug_struct("Simple").field("ttl", ttl).finish(),
            Self::Jwt(jwt) => f.debug_tuple("Jwt").field(&jwt.algorithm).finish_non_exhaustive(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
}

/// Issues tokens and checks them.
#[derive(Debug)]
pub(super) struct Tokens {
    options: TokenOptions,
    /// When simple tokens were last used here, by their signatures.
    used: Mutex<HashMap<[u8; SIGNATURE_BYTES], u64>>,
}

impl Tokens {
    pub(super) fn new(options: TokenOptions) -> Self {
        Self { options, used: Mutex::default() }
    }

    /// A token for a user whose password was right.
    pub(super) fn issue(
        &self,
        user: &str,
        state: &AuthState,
        wall_millis: u64,
    ) -> Result<String, AuthError> {
        match &self.options {
            TokenOptions::Simple { .. } => {
                let mut claims = Vec::new();
                claims.put_u64(wall_millis);
                claims.put_slice(&rand::random::<[u8; NONCE_BYTES]>());
                claims.put_slice(user.as_bytes());
                let signature = sign(&claims, user, state).ok_or(AuthError::Failed)?;
                Ok(format!("{}.{}", BASE64.encode(&claims), BASE64.encode(signature)))
            }
            TokenOptions::Jwt(options) => {
                // etcd's, too, says so: this member only verifies.
                let key = options.signs.as_ref().ok_or(AuthError::NotEnabled)?;
                let exp = wall_millis / 1000 + options.ttl.as_secs();
                let claims = Claims { username: user.to_owned(), revision: state.revision(), exp };
                let header = jwt::Header::new(options.algorithm);
                jwt::encode(&header, &claims, key).map_err(|error| {
                    tracing::error!(%error, "a token cannot be signed");
                    AuthError::Failed
                })
            }
        }
    }

    /// Whose token this is, if it is good.
    pub(super) fn check(
        &self,
        token: &str,
        state: &AuthState,
        wall_millis: u64,
    ) -> Result<String, AuthError> {
        match &self.options {
            TokenOptions::Simple { ttl } => {
                let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                self.check_simple(token, state, wall_millis, ttl_millis)
                    .ok_or(AuthError::InvalidToken)
            }
            TokenOptions::Jwt(options) => check_jwt(token, options, state, wall_millis),
        }
    }

    fn check_simple(
        &self,
        token: &str,
        state: &AuthState,
        wall_millis: u64,
        ttl_millis: u64,
    ) -> Option<String> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (claims, signature) = token.split_once('.')?;
        let (claims, signature) = (BASE64.decode(claims).ok()?, BASE64.decode(signature).ok()?);
        let signature: [u8; SIGNATURE_BYTES] = signature.try_into().ok()?;
        let (mut head, user) = claims.split_at_checked(size_of::<u64>() + NONCE_BYTES)?;
        let user = std::str::from_utf8(user).ok()?;
        let expected = sign(&claims, user, state)?;
        if !is_same(&expected, &signature) {
            return None;
        }
        let mut used = self.used.lock();
        let noted = used.get(&signature).copied();
        let last = noted.unwrap_or_default().max(head.get_u64());
        // The clock of who has issued it may be a little ahead.
        if wall_millis.saturating_sub(last) > ttl_millis {
            used.remove(&signature);
            return None;
        }
        if wall_millis.saturating_sub(last) >= NOTE_MILLIS {
            if used.len() >= USED_MAX && noted.is_none() {
                used.retain(|_, last| wall_millis.saturating_sub(*last) <= ttl_millis);
            }
            if used.len() < USED_MAX || noted.is_some() {
                used.insert(signature, wall_millis);
            }
        }
        Some(user.to_owned())
    }
}

/// Signs what a simple token says; `None` for a user who has no password, or is none.
fn sign(claims: &[u8], user: &str, state: &AuthState) -> Option<[u8; SIGNATURE_BYTES]> {
    let key = [state.secret().as_ref(), state.password(user)?].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), claims);
    tag.as_ref().first_chunk().copied()
}

/// In a time that does not depend on where they differ.
fn is_same(a: &[u8; SIGNATURE_BYTES], b: &[u8; SIGNATURE_BYTES]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn check_jwt(
    token: &str,
    options: &JwtOptions,
    state: &AuthState,
    wall_millis: u64,
) -> Result<String, AuthError> {
    let mut rules = jwt::Validation::new(options.algorithm);
    // The time is ours to look at: the claims say that there is one, and that it is a number.
    rules.validate_exp = false;
    rules.set_required_spec_claims(&["exp"]);
    rules.validate_aud = false;
    let claims = jwt::decode::<Claims>(token, &options.verifies, &rules)
        .map_err(|_| AuthError::InvalidToken)?
        .claims;
    if claims.exp <= wall_millis / 1000 {
        return Err(AuthError::InvalidToken);
    }
    if claims.revision < state.revision() {
        return Err(AuthError::OldRevision);
    }
    Ok(claims.username)
}

impl JwtOptions {
    /// Reads the keys of a method. `public` and `private` are what is in the files: PEM, or for the `HS` methods a private key
    /// that is any bytes, by which tokens are signed and verified alike.
    pub fn new(
        method: &str,
        public: Option<&[u8]>,
        private: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<Self, String> {
        use jwt::Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512};
        use jwt::Algorithm::{RS256, RS384, RS512};
        use jwt::{DecodingKey, EncodingKey};
        let algorithm: jwt::Algorithm = method.parse().map_err(|_| {
            format!("sign-method {method}: not supported; HS, RS and PS 256 to 512, ES256, ES384 and EdDSA are")
        })?;
        let verifies = match (algorithm, public) {
            (HS256 | HS384 | HS512, _) => private.map(|key| Ok(DecodingKey::from_secret(key))),
            (RS256 | RS384 | RS512 | PS256 | PS384 | PS512, Some(key)) => {
                Some(DecodingKey::from_rsa_pem(key))
            }
            (ES256 | ES384, Some(key)) => Some(DecodingKey::from_ec_pem(key)),
            (EdDSA, Some(key)) => Some(DecodingKey::from_ed_pem(key)),
            (_, None) => None,
        };
        let signs = private.map(|key| match algorithm {
            HS256 | HS384 | HS512 => Ok(EncodingKey::from_secret(key)),
            ES256 | ES384 => EncodingKey::from_ec_pem(key),
            EdDSA => EncodingKey::from_ed_pem(key),
            _ => EncodingKey::from_rsa_pem(key),
        });
        let is_bad = |error| format!("a key for {method} cannot be read: {error}");
        Ok(Self {
            algorithm,
            ttl,
            verifies: verifies
                .ok_or_else(|| {
                    format!("a key is needed to verify {method}: pub-key, or priv-key for HS")
                })?
                .map_err(is_bad)?,
            signs: signs.transpose().map_err(is_bad)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::auth::Auth;
    use crate::storage::schema::auth::{AuthKey, AuthValue};

    const NOW: u64 = 1_800_000_000_000;
    const TTL: u64 = 300_000;

    fn state(secret: &'static str, users: &[(&str, &'static str)]) -> Auth {
        let auth = Auth::default();
        let secret = secret.into();
        auth.tell(AuthKey::Switch, AuthValue::Switch { on: true, secret });
        for (name, hash) in users {
            let hash = Some((*hash).into());
            auth.tell(AuthKey::User((*name).to_owned()), AuthValue::User(hash));
        }
        auth
    }

    #[test]
    fn a_simple_token_is_good_on_every_member_until_it_is_not_used_for_long() {
        let auth = state("secret", &[("ann", "hash"), ("bob", "hash")]);
        let (one, other) =
            (Tokens::new(TokenOptions::default()), Tokens::new(TokenOptions::default()));
        let token = one.issue("ann", &auth.state(), NOW).unwrap();
        let whose = |tokens: &Tokens, at| tokens.check(&token, &auth.state(), at);
        assert_eq!(whose(&other, NOW + TTL), Ok("ann".to_owned()));
        // It was used there just now.
        assert_eq!(whose(&other, NOW + 2 * TTL), Ok("ann".to_owned()));
        assert_eq!(whose(&other, NOW + 3 * TTL + 1), Err(AuthError::InvalidToken));
        assert_eq!(whose(&one, NOW + TTL + 1), Err(AuthError::InvalidToken));
        assert_ne!(one.issue("ann", &auth.state(), NOW).unwrap(), token);
        assert_eq!(one.issue("nobody", &auth.state(), NOW), Err(AuthError::Failed));
    }

    #[test]
    fn what_nobody_has_issued_is_no_token() {
        let auth = state("secret", &[("ann", "hash")]);
        let tokens = Tokens::new(TokenOptions::default());
        let token = tokens.issue("ann", &auth.state(), NOW).unwrap();
        let (claims, signature) = token.split_once('.').unwrap();
        let later = {
            let mut claims = BASE64.decode(claims).unwrap();
            claims[7] ^= 1;
            format!("{}.{signature}", BASE64.encode(claims))
        };
        let long = format!("{}.{signature}", "A".repeat(TOKEN_BYTES_MAX));
        for forged in ["", ".", "a.b", claims, &later, &long, &format!("{claims}.")] {
            let checked = tokens.check(forged, &auth.state(), NOW);
            assert_eq!(checked, Err(AuthError::InvalidToken), "{forged}");
        }
        for other in [
            state("another", &[("ann", "hash")]),
            state("secret", &[("ann", "new")]),
            state("secret", &[]),
        ] {
            assert_eq!(tokens.check(&token, &other.state(), NOW), Err(AuthError::InvalidToken));
        }
    }

    #[test]
    fn a_jwt_has_an_end_and_a_revision() {
        let auth = state("secret", &[("ann", "hash")]);
        let options =
            JwtOptions::new("HS256", None, Some(b"key"), Duration::from_secs(60)).unwrap();
        let tokens = Tokens::new(TokenOptions::Jwt(Box::new(options.clone())));
        let token = tokens.issue("ann", &auth.state(), NOW).unwrap();
        let whose = |token: &str, at| tokens.check(token, &auth.state(), at);
        assert_eq!(whose(&token, NOW + 59_999), Ok("ann".to_owned()));
        assert_eq!(whose(&token, NOW + 60_000), Err(AuthError::InvalidToken));
        let signed = |header: jwt::Header, claims: serde_json::Value, key: &[u8]| {
            jwt::encode(&header, &claims, &jwt::EncodingKey::from_secret(key)).unwrap()
        };
        let plain = || jwt::Header::new(jwt::Algorithm::HS256);
        let end = NOW / 1000 + 60;
        let good = serde_json::json!({"username": "ann", "revision": 1, "exp": end});
        assert!(whose(&signed(plain(), good.clone(), b"key"), NOW).is_ok());
        let none =
            format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(good.to_string()));
        for forged in [
            signed(plain(), good.clone(), b"another"),
            signed(jwt::Header::new(jwt::Algorithm::HS512), good, b"key"),
            signed(plain(), serde_json::json!({"username": "ann", "revision": 1}), b"key"),
            signed(
                plain(),
                serde_json::json!({"username": "ann", "revision": 1, "exp": "9999999999"}),
                b"key",
            ),
            signed(plain(), serde_json::json!({"revision": 1, "exp": end}), b"key"),
            none,
        ] {
            assert_eq!(whose(&forged, NOW), Err(AuthError::InvalidToken), "{forged}");
        }
        auth.tell(AuthKey::Revision(crate::types::MemberId(1)), AuthValue::Revision(2));
        assert_eq!(whose(&token, NOW), Err(AuthError::OldRevision));
        for (method, public) in [
            ("RS256", None),
            ("ES512", Some(&b"key"[..])),
            ("none", None),
            ("RS256", Some(&b"key"[..])),
        ] {
            assert!(
                JwtOptions::new(method, public, Some(b"key"), Duration::from_secs(1)).is_err(),
                "{method}"
            );
        }
    }
}
