//! The settings of TLS, for clients and between members.

use std::path::PathBuf;

use super::{Settings, UsageError};
use crate::tls::{self, TlsFiles, TlsRules, Version};

/// The certificates of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConfig {
    /// From files.
    Files(TlsFiles),
    /// Made by the member, for so many years.
    SelfSigned {
        /// How long it is good.
        years: u32,
        /// What else has to be.
        rules: TlsRules,
    },
}

/// The flags of a port, which differ in their beginnings.
pub(super) struct Names {
    cert_file: &'static str,
    key_file: &'static str,
    ca_file: &'static str,
    crl_file: &'static str,
    client_cert_auth: &'static str,
    client_cert_file: &'static str,
    client_key_file: &'static str,
    allowed_names: &'static str,
    allowed_hosts: &'static str,
    auto_tls: &'static str,
    /// Under any of which nobody is asked to come from where the certificate says; none if nobody is in any case.
    skip_san_check: &'static [&'static str],
}

pub(super) const CLIENT: Names = Names {
    cert_file: "cert-file",
    key_file: "key-file",
    ca_file: "trusted-ca-file",
    crl_file: "client-crl-file",
    client_cert_auth: "client-cert-auth",
    client_cert_file: "client-cert-file",
    client_key_file: "client-key-file",
    allowed_names: "",
    allowed_hosts: "client-cert-allowed-hostname",
    auto_tls: "auto-tls",
    skip_san_check: &[],
};

pub(super) const PEER: Names = Names {
    cert_file: "peer-cert-file",
    key_file: "peer-key-file",
    ca_file: "peer-trusted-ca-file",
    crl_file: "peer-crl-file",
    client_cert_auth: "peer-client-cert-auth",
    client_cert_file: "peer-client-cert-file",
    client_key_file: "peer-client-key-file",
    allowed_names: "peer-cert-allowed-cn",
    allowed_hosts: "peer-cert-allowed-hostname",
    auto_tls: "peer-auto-tls",
    skip_san_check: &[
        "peer-skip-client-san-verification",
        "experimental-peer-skip-client-san-verification",
    ],
};

impl Settings {
    pub(super) fn tls(&self, names: &Names) -> Result<Option<TlsConfig>, UsageError> {
        let rules = self.tls_rules(names)?;
        let client = self.client_pair(names)?;
        if let Some((cert, key)) = self.pair(names.cert_file, names.key_file)? {
            return Ok(Some(TlsConfig::Files(TlsFiles {
                cert,
                key,
                ca: self.file(names.ca_file),
                client,
                crl: self.file(names.crl_file),
                rules,
            })));
        }
        if !self.is_on(names.auto_tls) {
            return if rules.demand_certificates {
                let Names { client_cert_auth, cert_file, key_file, .. } = names;
                let text = format!("--{client_cert_auth} needs --{cert_file} and --{key_file}");
                Err(UsageError::config(text))
            } else {
                Ok(None)
            };
        }
        if rules.demand_certificates || self.file(names.ca_file).is_some() {
            let text = format!("--{} is for whoever has no certificates to check", names.auto_tls);
            return Err(UsageError::config(text));
        }
        let years = u32::try_from(self.int("self-signed-cert-validity")).ok();
        let years = years.filter(|years| (1..=VALIDITY_YEARS_MAX).contains(years));
        let years = years.ok_or_else(|| {
            let text = "selfSignedCertValidity is invalid,it should be greater than 0";
            UsageError::config(text.to_owned())
        })?;
        let rules = TlsRules { trust_anybody: true, ..rules };
        Ok(Some(TlsConfig::SelfSigned { years, rules }))
    }

    /// Both files, or neither.
    fn pair(&self, cert: &str, key: &str) -> Result<Option<(PathBuf, PathBuf)>, UsageError> {
        match (self.file(cert), self.file(key)) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            _ => Err(UsageError::config(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                self.text(key),
                self.text(cert)
            ))),
        }
    }

    /// The same, in the words that etcd has for those that are used as a client.
    fn client_pair(&self, names: &Names) -> Result<Option<(PathBuf, PathBuf)>, UsageError> {
        let Names { client_cert_file: cert, client_key_file: key, .. } = names;
        self.pair(cert, key).map_err(|_| {
            UsageError::config(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
                self.text(key),
                self.text(cert)
            ))
        })
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn tls_rules(&self, names: &Names) -> Result<TlsRules, UsageError> {
        let version = |name| self.text(name).parse::<Version>().map_err(UsageError::config);
        let is_set = |name| !self.text(name).is_empty();
        let min = if is_set(MIN) { version(MIN)? } else { Version::default() };
        let max = if is_set(MAX) { Some(version(MAX)?) } else { None };
        let refuse = |text: String| Err(UsageError::config(text));
        if max.is_some_and(|max| min > max) {
            let (min, max) = (self.text(MIN), self.text(MAX));
            return refuse(format!("min version ({min}) is greater than max version ({max})"));
        }
        let suites = self.list("cipher-suites").iter().map(|name| tls::suite(name)).collect();
        let suites: Vec<_> = Result::map_err(suites, UsageError::config)?;
        if min == Version::Tls13 && !suites.is_empty() {
            return refuse(
                "cipher suites cannot be configured when only TLS1.3 is enabled".to_owned(),
            );
        }
        let (allowed_names, allowed_hosts) =
            (self.list(names.allowed_names), self.list(names.allowed_hosts));
        if !allowed_names.is_empty() && !allowed_hosts.is_empty() {
            return refuse(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={allowed_names:?}, hostnames={allowed_hosts:?})"
            ));
        }
        let demand_certificates = self.is_on(names.client_cert_auth);
        let trust_anybody = false;
        let skips = names.skip_san_check;
        let check_sans = !skips.is_empty() && !skips.iter().any(|name| self.is_on(name));
        Ok(TlsRules {
            demand_certificates,
            trust_anybody,
            check_sans,
            allowed_names,
            allowed_hosts,
            min,
            max,
            suites,
        })
    }
}

const MIN: &str = "tls-min-version";
const MAX: &str = "tls-max-version";
/// What a certificate's date has room for, with some to spare.
const VALIDITY_YEARS_MAX: u32 = 1000;
