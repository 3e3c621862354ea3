use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use super::Tls;
use super::settings::Settings;
use crate::config::ConfigError;

/// TLS as a URL says. No provider has to be installed for the process.
pub(super) fn tls(settings: &Settings, mode: &str, is_direct: bool) -> Result<Tls, ConfigError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .expect("ring has what TLS 1.2 and 1.3 need");
    let verifier = Arc::new(Verifier::new(settings, mode, provider)?);
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (&settings.certificate, &settings.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates("sslcert", certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unusable("sslkey", key, &unread(&error, "private key")))?;
            let config = config.with_client_auth_cert(chain, secret);
            config.map_err(|error| unusable("sslkey", key, &error))?
        }
        (Some(certificate), None) => {
            let remedy = "sslkey must name the file of its key";
            return Err(ConfigError::option("sslcert", certificate, remedy));
        }
        (None, Some(key)) => {
            let remedy = "sslcert must name the file of its certificate";
            return Err(ConfigError::option("sslkey", key, remedy));
        }
    };
    if is_direct {
        // The protocol's name in a handshake that no request precedes.
        config.alpn_protocols = vec!["postgresql".into()];
    }
    Ok(Tls::new(MakeRustlsConnect::new(config)))
}

/// Looks at as much of a server's certificate as a URL asks for. That the server has its key is
/// always checked: a login may be bound to the certificate.
#[derive(Debug)]
struct Verifier {
    /// `None` if anybody is trusted.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    compares_name: bool,
    /// The certificates of the file that the URL names.
    given: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(
        settings: &Settings,
        mode: &str,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, ConfigError> {
        let algorithms = provider.signature_verification_algorithms;
        let file = settings.roots.as_ref().filter(|_| !settings.is_system());
        let given = file.map(|file| certificates("sslrootcert", file));
        let given = given.transpose()?.unwrap_or_default();
        let source = file.map_or("system", String::as_str);
        let mut roots = RootCertStore::empty();
        for certificate in &given {
            let added = roots.add(certificate.clone());
            added.map_err(|error| unusable("sslrootcert", source, &error))?;
        }
        let compares_name = mode == "verify-full";
        let is_verified = compares_name || mode == "verify-ca" || file.is_some();
        if is_verified && file.is_none() {
            // Nothing of what the system trusts may be broken for us.
            roots.add_parsable_certificates(trusted_by_system());
        }
        let authorities = is_verified.then(|| {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build();
            verifier.map_err(|error| unusable("sslrootcert", source, &error))
        });
        Ok(Self {
            authorities: authorities.transpose()?,
            compares_name,
            given,
            algorithms,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = authorities.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let Err(Error::InvalidCertificate(problem)) = &verified else {
            return verified;
        };
        match problem {
            // It comes last: all else is right.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                if !self.compares_name => {}
            // The server's own certificate, signed by itself, is the one in the file: it is valid
            // today, but claims to be a CA's.
            CertificateError::Other(other)
                if other.0.to_string() == "CaUsedAsEndEntity"
                    && self.given.iter().any(|given| given == certificate) =>
            {
                if self.compares_name {
                    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
            }
            _ => return verified,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn certificates(
    option: &'static str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates: Vec<_> =
        read.map_err(|error| unusable(option, file, &unread(&error, "certificate")))?;
    if certificates.is_empty() {
        let nothing = unread(&pem::Error::NoItemsFound, "certificate");
        return Err(unusable(option, file, &nothing));
    }
    Ok(certificates)
}

fn unread(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("it has no {what} in PEM form"),
        error => error.to_string(),
    }
}

/// A file that the URL names, or what the system trusts, that is of no use.
fn unusable(option: &'static str, file: &str, problem: &impl ToString) -> ConfigError {
    ConfigError::TlsFile {
        option,
        path: file.into(),
        problem: problem.to_string(),
    }
}

/// Read once, unless there was nothing: these are many files, and each new connection wants them.
fn trusted_by_system() -> Vec<CertificateDer<'static>> {
    static CERTIFICATES: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    if let Some(certificates) = CERTIFICATES.get() {
        return certificates.clone();
    }
    let certificates = rustls_native_certs::load_native_certs().certs;
    if !certificates.is_empty() {
        let _ = CERTIFICATES.set(certificates.clone());
    }
    certificates
}
