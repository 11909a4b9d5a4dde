//! The certificate authorities that vouch for an upstream.
#![forbid(unsafe_code)]

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Error, Result};

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
