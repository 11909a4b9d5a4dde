//! The authority of one run: it vouches for the hosts whose TLS the broker ends, and only this cell trusts it.
//!
//! Its key is no secret from the agent, who could at most deceive itself with it: nobody else trusts it, and it vouches
//! for no name but those of its hosts. It is never written down.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::types::error::{Error, Result};
use crate::types::hosts::HostName;

/// Clocks differ.
const SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    terms: Terms,
}

/// What it says of itself beside its key.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Terms {
    names: Vec<HostName>,
    /// From when on and until when it is valid, in seconds since 1970.
    valid: (i64, i64),
}

impl Terms {
    fn moments(&self) -> (OffsetDateTime, OffsetDateTime) {
        let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        (moment(self.valid.0), moment(self.valid.1))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl Authority {
    /// One for these names, for as long as the run may take.
    ///
    /// # Errors
    /// A kernel without random bytes.
    pub fn new(names: &[HostName], time: Duration) -> Result<Authority> {
        let failed = |error: rcgen::Error| Error::new("make an authority for the cell", error.to_string());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = |time: Duration| time.as_secs() as i64;
        let valid = (seconds(now.saturating_sub(SLACK)), seconds(now + time.min(SLACK * 365) + SLACK));
        let key = KeyPair::generate().map_err(failed)?;
        Authority::of(Terms { names: names.to_vec(), valid }, key).map_err(failed)
    }

    /// The same one, in another process.
    ///
    /// # Errors
    /// A sentence: this is no key.
    pub fn again(terms: Terms, key: &[u8]) -> Result<Authority, String> {
        let failed = |error: rcgen::Error| format!("cannot take the cell's authority over: {error}");
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &PKCS_ECDSA_P256_SHA256);
        key.and_then(|key| Authority::of(terms, key)).map_err(failed)
    }

    /// What another process needs to be the same one, beside [`Authority::key`].
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Its key (PKCS#8).
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    fn of(terms: Terms, key: KeyPair) -> Result<Authority, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "oubliette, this run only");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: terms.names.iter().map(|name| GeneralSubtree::DnsName(name.to_string())).collect(),
            // A permitted name says nothing of addresses (RFC 5280, 4.2.1.10).
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
            ],
        });
        (params.not_before, params.not_after) = terms.moments();
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem, terms })
    }

    /// Its certificate, for the cell.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server of this name, and of no other: a client that asks for another one gets no certificate.
    ///
    /// # Errors
    /// A sentence.
    pub fn server(&self, name: &HostName) -> Result<Arc<ServerConfig>, String> {
        let failed = |error: &dyn fmt::Display| format!("cannot vouch for {name}: {error}");
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(|error| failed(&error))?;
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = self.terms.moments();
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider.key_provider.load_private_key(key).map_err(|error| failed(&error))?;
        let mut names = ResolvesServerCertUsingSni::new();
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        names.add(name.as_str(), certified).map_err(|error| failed(&error))?;
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config =
            config.map_err(|error| failed(&error))?.with_no_client_auth().with_cert_resolver(Arc::new(names));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
