//! How clients say who they are: `--auth-token` and what goes with it.

use std::path::PathBuf;
use std::time::Duration;

use super::{Settings, UsageError, parse};
use crate::node::{COST_DEFAULT, COSTS};

/// etcd's time to live of a JWT.
const JWT_TTL: Duration = Duration::from_secs(300);

/// What the flags say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// What kind of tokens there are.
    pub tokens: TokenConfig,
    /// The cost of a password's hash.
    pub bcrypt_cost: u32,
}

/// What kind of tokens there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenConfig {
    /// Simple ones.
    Simple {
        /// How long one is good after its last use.
        ttl: Duration,
    },
    /// JWT.
    Jwt {
        /// By which method they are signed, in the words of the standard.
        method: String,
        /// What they are verified with.
        public_key: Option<PathBuf>,
        /// What they are signed with.
        private_key: Option<PathBuf>,
        /// How long one is good.
        ttl: Duration,
    },
}

impl Settings {
    pub(super) fn auth(&self) -> Result<AuthConfig, UsageError> {
        let cost = u32::try_from(self.int("bcrypt-cost")).unwrap_or_default();
        // etcd goes on with the usual cost, too.
        let bcrypt_cost = if COSTS.contains(&cost) { cost } else { COST_DEFAULT };
        Ok(AuthConfig { tokens: self.tokens()?, bcrypt_cost })
    }

    fn tokens(&self) -> Result<TokenConfig, UsageError> {
        let text = self.text("auth-token");
        let refuse = |why: &str| UsageError::config(format!("--auth-token={text}: {why}"));
        let mut parts = text.split(',');
        match parts.next().unwrap_or_default() {
            "simple" | "" => {
                let ttl = self.positive::<u32>("auth-token-ttl")?;
                Ok(TokenConfig::Simple { ttl: Duration::from_secs(u64::from(ttl)) })
            }
            "jwt" => {
                let (mut method, mut public_key, mut private_key) = (String::new(), None, None);
                let mut ttl = JWT_TTL;
                for part in parts {
                    let (name, value) =
                        part.split_once('=').ok_or_else(|| refuse("invalid auth options"))?;
                    match name {
                        "sign-method" => value.clone_into(&mut method),
                        "pub-key" => public_key = Some(PathBuf::from(value)),
                        "priv-key" => private_key = Some(PathBuf::from(value)),
                        "ttl" => {
                            let parsed = parse::parse_duration(value);
                            ttl = parsed.ok_or_else(|| refuse("the ttl is no duration"))?;
                        }
                        _ => return Err(refuse("unknown option")),
                    }
                }
                if method.is_empty() {
                    return Err(refuse("a sign-method is needed"));
                }
                Ok(TokenConfig::Jwt { method, public_key, private_key, ttl })
            }
            _ => Err(refuse("expected simple, or jwt and its options")),
        }
    }
}
