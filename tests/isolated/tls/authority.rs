//! A certificate authority of the tests' own.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SignatureAlgorithm, date_time_ymd,
};

/// Signs certificates; nobody trusts it who has not been told to.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both as PEM.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// One that signs with ECDSA over P-256 and SHA-256.
    pub fn new() -> Self {
        Self::signing_with(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub fn signing_with(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let issuer = CertifiedIssuer::self_signed(authority("the tests' authority"), key);
        Self(issuer.expect("a certificate"))
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these host names.
    pub fn server(&self, names: &[&str]) -> Certified {
        self.sign(&for_names(names))
    }

    /// One whose time is over.
    pub fn expired(&self, names: &[&str]) -> Certified {
        let mut parameters = for_names(names);
        parameters.not_before = date_time_ymd(2001, 1, 1);
        parameters.not_after = date_time_ymd(2002, 1, 1);
        self.sign(&parameters)
    }

    /// One whose time has not come.
    pub fn early(&self, names: &[&str]) -> Certified {
        let mut parameters = for_names(names);
        parameters.not_before = date_time_ymd(3001, 1, 1);
        parameters.not_after = date_time_ymd(3002, 1, 1);
        self.sign(&parameters)
    }

    /// A client's certificate for a user of the database.
    pub fn client(&self, user: &str) -> Certified {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, user);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&parameters)
    }

    fn sign(&self, parameters: &CertificateParams) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.0).expect("a certificate");
        Certified {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A server's certificate that is signed by itself, and says that it is an authority's, as `openssl req -x509` makes them.
pub fn self_signed(name: &str) -> Certified {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = authority(name);
    parameters.subject_alt_names = for_names(&[name]).subject_alt_names;
    let certificate = parameters.self_signed(&key).expect("a certificate");
    Certified {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

/// A certificate of X.509 version 1 for `localhost`, valid for a century, as `openssl x509 -req` makes them without extensions.
pub fn version_1() -> Certified {
    Certified {
        certificate: "\
-----BEGIN CERTIFICATE-----
MIIBIzCBywIUWHjOX8q3IcSOAoIwfgpIa8Mz/7YwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIzMjU1NVoYDzIxMjYxMDMwMjMyNTU1
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATrVGoaE8Lr9XvgjjKQy5BzozbDprLBFW6DCjTK4OHa4/IeV88dIRtfLUKtjU6X
eyjAgkXegb1m3Cm+WlSNQ+U0MAoGCCqGSM49BAMCA0cAMEQCIBYEuOrbh89xXe5h
aNixHJqbf3Y1aOqfDWciIXDkw3vZAiBtiyfiPIWD76NUIEGftaM2uq8jHh1mU4mw
cjJTQ73xmw==
-----END CERTIFICATE-----
"
        .into(),
        key: "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgkRCDTOUiBCuFKT/k
pMj0Ku8yUANrb6w1W3JKqqQF9behRANCAATrVGoaE8Lr9XvgjjKQy5BzozbDprLB
FW6DCjTK4OHa4/IeV88dIRtfLUKtjU6XeyjAgkXegb1m3Cm+WlSNQ+U0
-----END PRIVATE KEY-----
"
        .into(),
    }
}

/// A certificate that is signed by itself with RSA and SHA-256, valid for a century: `ring` makes no
/// keys for RSA.
pub fn rsa_sha256() -> Certified {
    Certified {
        certificate: include_str!("rsa.pem").into(),
        key: include_str!("rsa.key").into(),
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
}

fn for_names(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    CertificateParams::new(names).expect("host names")
}
