//! The certificates between controller and nodes, as the operator makes them.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{Error, Result, error::Named};

/// Writes the controller's and the nodes' files, of one authority, into the two directories.
pub fn write(controller: &Path, nodes: &Path) -> Result<()> {
    let refused = |error: rcgen::Error| Error::Machine(format!("certificates cannot be made: {error}"));
    let key = KeyPair::generate().map_err(refused)?;
    let mut params = CertificateParams::new(vec![]).map_err(refused)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).map_err(refused)?.pem();
    let issuer = Issuer::new(params, key);
    for (dir, name, usage) in [
        (controller, "holdfast-controller", ExtendedKeyUsagePurpose::ClientAuth),
        (nodes, "holdfast-node", ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(refused)?;
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).map_err(refused)?.pem();
        fs::create_dir_all(dir).named("create", dir)?;
        for (file, contents) in
            [("ca.crt", &authority), ("tls.crt", &certificate), ("tls.key", &key.serialize_pem())]
        {
            let path = dir.join(file);
            fs::write(&path, contents).named("write", &path)?;
        }
    }
    Ok(())
}
