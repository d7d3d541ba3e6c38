//! What of TLS may be used, and by whom.

use std::str::FromStr;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{CipherSuite, SupportedProtocolVersion, version};

/// What has to be, besides a certificate that somebody trusted has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsRules {
    /// Whether those who connect have to show certificates even where no CA is named, and those of clients name users.
    pub demand_certificates: bool,
    /// Nobody's certificate is looked at, since all make their own.
    pub trust_anybody: bool,
    /// Whoever connects has to come from an address or a host that its certificate is for, unless it names none.
    pub check_sans: bool,
    /// Common names of which a certificate must have one, ...
    pub allowed_names: Vec<String>,
    /// ... or hosts. All, if there are none of either.
    pub allowed_hosts: Vec<String>,
    /// The oldest version.
    pub min: Version,
    /// The newest version.
    pub max: Option<Version>,
    /// Of TLS 1.2; all there are if empty. Those of TLS 1.3 are not to be chosen, in etcd neither.
    pub suites: Vec<CipherSuite>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "TLS1.2" => Ok(Self::Tls12),
            "TLS1.3" => Ok(Self::Tls13),
            _ => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
        }
    }
}

/// A cipher suite by the name that Go has for it.
pub fn suite(name: &str) -> Result<CipherSuite, String> {
    use CipherSuite as Suite;
    Ok(match name {
        "TLS_AES_128_GCM_SHA256" => Suite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => Suite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => Suite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        // Go had names without the hash first, and takes both.
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"
        | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ if WEAK.contains(&name) => {
            return Err(format!(
                "TLS cipher suite {name:?} is not supported: it has no forward secrecy or is no AEAD"
            ));
        }
        _ => return Err(format!("unexpected TLS cipher suite {name:?}")),
    })
}

/// Those that Go knows and rustls, for good reasons, does not.
const WEAK: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

impl TlsRules {
    pub(super) fn provider(&self) -> CryptoProvider {
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            provider
                .cipher_suites
                .retain(|suite| suite.tls13().is_some() || self.suites.contains(&suite.suite()));
        }
        provider
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(Version::Tls13, &version::TLS13), (Version::Tls12, &version::TLS12)];
        let is_within = |version| version >= self.min && self.max.is_none_or(|max| version <= max);
        all.into_iter().filter(|(version, _)| is_within(*version)).map(|(_, of)| of).collect()
    }
}
