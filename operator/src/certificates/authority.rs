//! A certificate authority that rotates without a gap: the state, what changes when, and the making of certificates.
//!
//! Whoever trusts the bundle must trust a new authority *before* anybody shows a certificate signed by it. So an
//! authority is first published (`next`), and signs only after everybody has had time to load the bundle; the old one
//! (`previous`) stays in the bundle until it expires.

use holdfast_api::jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::pem::parse_x509_pem;

/// How long an authority is valid.
pub const AUTHORITY_DAYS: i64 = 3 * 365;
/// How long a leaf is valid.
pub const LEAF_DAYS: i64 = 90;
/// How long a new authority is only trusted before it signs: far longer than a projected Secret takes to arrive.
pub const OVERLAP: SignedDuration = SignedDuration::from_hours(24);
/// Backdating, for clocks that run behind.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// Why a certificate cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error("cannot be made: {0}")]
    Make(String),
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(String),
}

/// A certificate and its key, in PEM. Its `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The authority: who signs, who will, who did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Signs leaves.
    pub current: Pair,
    /// Trusted already; signs once [`OVERLAP`] has passed.
    pub next: Option<Pair>,
    /// Signed leaves that may still be shown.
    pub previous: Option<String>,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: Timestamp,
    /// Until.
    pub not_after: Timestamp,
}

impl Validity {
    /// Of a certificate in PEM.
    pub fn of(pem: &str) -> Result<Self, CertificateError> {
        let read = |what: String| CertificateError::Read(what);
        let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|error| read(error.to_string()))?;
        let certificate = block.parse_x509().map_err(|error| read(error.to_string()))?;
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| read(error.to_string()));
        let validity = certificate.validity();
        Ok(Self {
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }

    /// Whether less than a third of the time is left.
    pub fn is_ending(&self, now: Timestamp) -> bool {
        let whole = self.not_after.duration_since(self.not_before);
        self.not_after.duration_since(now) < whole / 3
    }
}

fn parameters(name: &str, now: Timestamp, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let from = now - BACKDATE;
    let until = now + SignedDuration::from_hours(24 * days);
    let time = |time: Timestamp| std::time::SystemTime::from(time).into();
    params.not_before = time(from);
    params.not_after = time(until);
    params
}

fn make<T>(result: Result<T, rcgen::Error>) -> Result<T, CertificateError> {
    result.map_err(|error| CertificateError::Make(error.to_string()))
}

/// A new authority's certificate. Its name carries the time, so that two of them can be told apart.
pub fn new_authority(now: Timestamp) -> Result<Pair, CertificateError> {
    let mut params = parameters(&format!("holdfast {}", now.as_second()), now, AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = make(KeyPair::generate())?;
    let certificate = make(params.self_signed(&key))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// What a leaf is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// By the nodes, to the controller.
    Server,
    /// By the controller, to the nodes.
    Client,
}

/// A leaf for `name`, signed by `issuer`.
pub fn new_leaf(issuer: &Pair, name: &str, role: Role, now: Timestamp) -> Result<Pair, CertificateError> {
    let mut params = parameters(name, now, LEAF_DAYS);
    let dns = make(name.try_into())?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(dns)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let signer = make(KeyPair::from_pem(&issuer.key))?;
    let issuer = make(Issuer::from_ca_cert_pem(&issuer.certificate, signer))?;
    let key = make(KeyPair::generate())?;
    let certificate = make(params.signed_by(&key, &issuer))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whether `issuer` signed the leaf.
pub fn is_signed_by(leaf: &str, issuer: &str) -> Result<bool, CertificateError> {
    let read = |what: String| CertificateError::Read(what);
    let (_, leaf) = parse_x509_pem(leaf.as_bytes()).map_err(|error| read(error.to_string()))?;
    let leaf = leaf.parse_x509().map_err(|error| read(error.to_string()))?;
    let (_, issuer) = parse_x509_pem(issuer.as_bytes()).map_err(|error| read(error.to_string()))?;
    let issuer = issuer.parse_x509().map_err(|error| read(error.to_string()))?;
    // Names carry the time of making; whether the signature is right is for those who are shown it.
    Ok(leaf.issuer() == issuer.subject())
}

impl Authority {
    /// The first authority of a cluster. It signs at once: there is nobody yet who trusts another.
    pub fn first(now: Timestamp) -> Result<Self, CertificateError> {
        Ok(Self { current: new_authority(now)?, next: None, previous: None })
    }

    /// Takes the step of the rotation that is due, if one is. Repeating it at the same time changes nothing.
    pub fn rotate(mut self, now: Timestamp) -> Result<Self, CertificateError> {
        if let Some(next) = &self.next {
            let trusted_since = Validity::of(&next.certificate)?.not_before + BACKDATE;
            if now.duration_since(trusted_since) >= OVERLAP {
                let next = next.clone();
                self.previous = Some(std::mem::replace(&mut self.current, next).certificate);
                self.next = None;
            }
        } else if Validity::of(&self.current.certificate)?.is_ending(now) {
            self.next = Some(new_authority(now)?);
        }
        let expired = match &self.previous {
            Some(previous) => Validity::of(previous)?.not_after <= now,
            None => false,
        };
        if expired {
            self.previous = None;
        }
        Ok(self)
    }

    /// All that is trusted, in PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|pair| pair.certificate.as_str());
        [Some(self.current.certificate.as_str()), next, self.previous.as_deref()]
            .into_iter()
            .flatten()
            .map(|pem| format!("{}\n", pem.trim_end()))
            .collect()
    }

    /// Whether a leaf has to be made anew: it ends soon, or another authority signed it.
    pub fn must_renew(&self, leaf: &str, now: Timestamp) -> Result<bool, CertificateError> {
        Ok(Validity::of(leaf)?.is_ending(now) || !is_signed_by(leaf, &self.current.certificate)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn days(count: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * count)
    }

    #[test]
    fn a_leaf_lives_its_time_and_names_its_issuer() {
        let now = at("2026-11-23T10:00:00Z");
        let authority = Authority::first(now).expect("an authority");
        let leaf = new_leaf(&authority.current, "holdfast-node", Role::Server, now).expect("a leaf");
        let validity = Validity::of(&leaf.certificate).expect("readable");
        assert_eq!(validity.not_after, now + days(LEAF_DAYS));
        assert!(is_signed_by(&leaf.certificate, &authority.current.certificate).expect("readable"));
        assert!(!authority.must_renew(&leaf.certificate, now + days(50)).expect("readable"));
        assert!(authority.must_renew(&leaf.certificate, now + days(61)).expect("readable"));
    }

    #[test]
    fn a_new_authority_is_trusted_before_it_signs_and_the_old_one_after() {
        let start = at("2026-11-23T10:00:00Z");
        let first = Authority::first(start).expect("an authority");
        let unchanged = first.clone().rotate(start + days(700)).expect("rotates");
        assert_eq!(unchanged, first);

        let ending = start + days(740);
        let published = first.clone().rotate(ending).expect("rotates");
        assert_eq!(published.current, first.current, "the old one still signs");
        let next = published.next.clone().expect("the new one is published");
        assert!(published.bundle().contains(next.certificate.trim_end()));

        let soon = published.clone().rotate(ending + SignedDuration::from_hours(23)).expect("rotates");
        assert_eq!(soon, published, "not before everybody has had time to load it");

        let promoted = published.rotate(ending + OVERLAP).expect("rotates");
        assert_eq!(promoted.current, next);
        assert_eq!(promoted.previous.as_deref(), Some(first.current.certificate.as_str()));
        let old_leaf = new_leaf(&first.current, "holdfast-node", Role::Server, ending).expect("a leaf");
        assert!(promoted.must_renew(&old_leaf.certificate, ending + OVERLAP).expect("readable"));
        assert!(promoted.bundle().contains(first.current.certificate.trim_end()));

        let done = promoted.rotate(start + days(AUTHORITY_DAYS + 1)).expect("rotates");
        assert_eq!(done.previous, None);
    }

    #[test]
    fn keys_do_not_show_when_printed() {
        let authority = Authority::first(at("2026-11-23T10:00:00Z")).expect("an authority");
        assert!(!format!("{authority:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn rubbish_is_an_error_and_no_panic() {
        assert!(matches!(Validity::of("no certificate"), Err(CertificateError::Read(_))));
    }
}
