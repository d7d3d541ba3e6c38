//! Certificates that members make themselves, for `--auto-tls` and `--peer-auto-tls`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};

use super::TlsFiles;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Only for whoever runs the member.
const DIRECTORY_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;

/// A certificate for hosts and its key, in a directory. What a former start left there is taken.
pub fn self_signed(directory: &Path, hosts: &[String], years: u32) -> io::Result<TlsFiles> {
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if !cert.exists() || !key.exists() {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        let (cert_pem, key_pem) = generate(hosts, years).map_err(io::Error::other)?;
        write_secret(&key, &key_pem)?;
        fs::write(&cert, cert_pem)?;
    }
    Ok(TlsFiles { cert, key, ..TlsFiles::default() })
}

fn write_secret(file: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(KEY_MODE).open(file)?;
    file.write_all(text.as_bytes())
}

/// Certificate and key, in PEM.
fn generate(hosts: &[String], years: u32) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    let now = SystemTime::now();
    params.not_before = now.into();
    params.not_after = (now + YEAR.saturating_mul(years)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
