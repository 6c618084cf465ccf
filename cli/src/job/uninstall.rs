//! Whether Holdfast may be removed from a cluster: not while a volume is attached, for nobody would be left to detach
//! it, and the node that has it would hang.

use holdfast_api::DRIVER;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{Api, Client, api::ListParams};

use super::JobError;

/// Succeeds if no volume of ours is attached; names those that are otherwise.
pub async fn may_uninstall() -> Result<(), JobError> {
    let attachments: Api<VolumeAttachment> = Api::all(Client::try_default().await?);
    let attached = of_ours(&attachments.list(&ListParams::default()).await?.items);
    if attached.is_empty() { Ok(()) } else { Err(JobError::Attached { volumes: attached.join(", ") }) }
}

fn of_ours(attachments: &[VolumeAttachment]) -> Vec<String> {
    attachments
        .iter()
        .filter(|attachment| attachment.spec.attacher == DRIVER)
        .map(|attachment| {
            let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or("?");
            format!("{volume} on {}", attachment.spec.node_name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_volumes_of_ours_stand_in_the_way() {
        let attachment = |attacher: &str, volume: &str| {
            let mut attachment = VolumeAttachment::default();
            attachment.spec.attacher = attacher.to_owned();
            attachment.spec.node_name = "n1".to_owned();
            attachment.spec.source.persistent_volume_name = Some(volume.to_owned());
            attachment
        };
        let all = [attachment("ebs.csi.aws.com", "theirs"), attachment(DRIVER, "pvc-1")];
        assert_eq!(of_ours(&all), ["pvc-1 on n1"]);
    }
}
