//! Certificates as the operator makes them.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Writes the controller's and the nodes' files, of one authority, into the two directories.
pub fn write(controller: &Path, nodes: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    for (dir, name, usage) in [
        (controller, "holdfast-controller", ExtendedKeyUsagePurpose::ClientAuth),
        (nodes, "holdfast-node", ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        std::fs::create_dir_all(dir).unwrap();
        for (file, contents) in
            [("ca.crt", &authority), ("tls.crt", &certificate), ("tls.key", &key.serialize_pem())]
        {
            std::fs::write(dir.join(file), contents).unwrap();
        }
    }
}
