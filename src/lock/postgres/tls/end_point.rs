use sha2::{Digest, Sha256, Sha384, Sha512};

/// The hash of a certificate that a login can be bound to (`tls-server-end-point`, RFC 5929): by the hash function of its signature. Nothing where the
/// signature has none of its own, as with Ed25519.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }
    let (certificate_fields, _) = element(certificate)?;
    let (_, after_tbs) = element(certificate_fields)?;
    let (algorithm, _) = element(after_tbs)?;
    let (identifier, _) = element(algorithm)?;
    match identifier {
        // MD5 and SHA-1 with RSA, SHA-1 with ECDSA: SHA-256 stands in for both. SHA-256 with RSA, with ECDSA.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Some(Sha256::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Some(Sha384::digest(certificate).to_vec()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// What is in the first element of some DER, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&short, rest) = der.get(1..)?.split_first()?;
    if short < 0x80 {
        return rest.split_at_checked(short.into());
    }
    let (length, rest) = rest.split_at_checked((short & 0x7f).into())?;
    let length = length.iter().try_fold(0_usize, |length, &byte| {
        length.checked_mul(256)?.checked_add(byte.into())
    })?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_has_no_hash() {
        // SEQUENCE { SEQUENCE {}, SEQUENCE { OBJECT IDENTIFIER ecdsa-with-SHA256 } }
        let whole = [
            0x30, 0x0e, 0x30, 0, 0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2,
        ];
        assert_eq!(end_point(&whole), Some(Sha256::digest(whole).to_vec()));
        for length in 0..whole.len() {
            assert_eq!(end_point(&whole[..length]), None);
        }
        // Lengths of several bytes, up to more than there is memory.
        assert_eq!(element(&[4, 0x81, 1, 7, 8]), Some((&[7][..], &[8][..])));
        assert_eq!(element(&[4, 0x80]), Some((&[][..], &[][..])));
        assert_eq!(element(&[&[4, 0xff][..], &[0xff; 127][..]].concat()), None);
    }
}
