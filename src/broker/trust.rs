//! The certificate authorities that vouch for an upstream, and what vouches for the broker there.
#![forbid(unsafe_code)]

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::types::error::{Error, Result};

/// Reads a file of certificates in PEM. What is no authority in it is left out, as a host's file has some of every age.
///
/// # Errors
/// It cannot be read, or there is no authority in it.
pub fn read(path: &Path) -> Result<RootCertStore> {
    let object = format!("use the certificate authorities of {}", path.display());
    let text = std::fs::read(path).map_err(|error| Error::new(&*object, error).hint("check the path"))?;
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(&text).filter_map(|one| one.ok()).collect();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(Error::new(object, "there is none in it").hint("name a file with certificates in PEM"));
    }
    Ok(roots)
}

/// Whether a file seems to hold a certificate and a key, by its marks alone. To decode the key would leave copies of it in
/// the launcher's heap, which the cell's init gets by fork.
///
/// # Errors
/// A sentence.
pub fn has_identity(text: &[u8]) -> std::result::Result<(), String> {
    let has = |mark: &[u8]| memchr::memmem::find(text, mark).is_some();
    match (has(b"-----BEGIN CERTIFICATE-----"), has(b"PRIVATE KEY-----")) {
        (true, true) => Ok(()),
        (_, false) => Err("there is no private key in PEM in it".into()),
        (false, _) => Err("there is no certificate in PEM in it".into()),
    }
}

/// A client's certificate with those that lead to its authority, and its key, from one file in PEM.
///
/// # Errors
/// A sentence: one of them is not in it. It says nothing of the file's text.
pub fn identity(text: &[u8]) -> std::result::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text).filter_map(|one| one.ok()).collect();
    let key = PrivateKeyDer::from_pem_slice(text).map_err(|_| "there is no private key in PEM in it")?;
    if chain.is_empty() {
        return Err("there is no certificate in PEM in it".into());
    }
    Ok((chain, key))
}
