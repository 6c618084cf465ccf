//! Creating, deleting, growing and describing volumes.

use holdfast_csi_proto::csi::controller_get_volume_response::VolumeStatus;
use holdfast_csi_proto::csi::validate_volume_capabilities_response::Confirmed;
use holdfast_csi_proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, CreateVolumeRequest, CreateVolumeResponse,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};
use tonic::Status;

use super::convert;
use super::storage::{NewVolume, Source, Storage, VolumeInfo};
use crate::capability::{Capability, Form, fs_type, min_bytes};
use crate::handles::{VolumeHandle, check_present};
use crate::params::{self, Parameters};
use crate::size::{DEFAULT_BYTES, MAX_BYTES, MIN_BYTES, Sizes, to_csi};

pub(super) async fn create(
    storage: &dyn Storage,
    request: CreateVolumeRequest,
) -> Result<CreateVolumeResponse, Status> {
    convert::check_name("volume", &request.name)?;
    let capabilities = Capability::all(&request.volume_capabilities)?;
    let parameters = Parameters::parse(&request.parameters)?;
    let durability = params::mutable(&request.mutable_parameters)?.unwrap_or(parameters.durability);
    let sizes = Sizes::parse(request.capacity_range.as_ref())?;
    let source = convert::source(request.volume_content_source.as_ref())?;
    let smallest = smallest(&capabilities, &parameters)?;

    // An existing volume is compared with what was asked for, not with what would be made of it today.
    let pool = parameters.pool.as_deref();
    if let Some(found) = storage.volume_by_name(pool, &request.name).await? {
        return same(&request.name, &found, sizes, source);
    }
    let (floor, default) = match source {
        None => (smallest, DEFAULT_BYTES.max(smallest)),
        Some(source) => {
            let bytes = source_bytes(storage, source).await?;
            (bytes.max(smallest), bytes)
        }
    };
    let volume = NewVolume {
        name: request.name,
        pool: parameters.pool,
        size_bytes: sizes.choose(floor, default)?,
        source,
        codec: parameters.codec,
        durability,
    };
    // Another request may have made it meanwhile.
    same(&volume.name, &storage.create_volume(&volume).await?, sizes, source)
}

/// Answers with a volume that has the name, if it is what was asked for.
fn same(
    name: &str,
    found: &VolumeInfo,
    sizes: Sizes,
    source: Option<Source>,
) -> Result<CreateVolumeResponse, Status> {
    if !sizes.allow(found.size_bytes) {
        return Err(Status::already_exists(format!(
            "volume {name:?} exists with {} bytes, which is not the size asked for",
            found.size_bytes
        )));
    }
    if found.source != source {
        return Err(Status::already_exists(format!("volume {name:?} exists with another source")));
    }
    Ok(CreateVolumeResponse { volume: Some(convert::volume(found)) })
}

/// The smallest volume that all of the file systems asked for fit on.
fn smallest(capabilities: &[Capability], parameters: &Parameters) -> Result<u64, Status> {
    let named = parameters.fs_type.as_deref().map(fs_type).transpose()?;
    let of_capabilities = capabilities.iter().map(|capability| match &capability.form {
        Form::Block => MIN_BYTES,
        Form::Filesystem { fs_type, .. } => min_bytes(*fs_type),
    });
    Ok(named.map(min_bytes).into_iter().chain(of_capabilities).max().unwrap_or(MIN_BYTES))
}

async fn source_bytes(storage: &dyn Storage, source: Source) -> Result<u64, Status> {
    match source {
        Source::Volume(handle) => Ok(storage.volume(handle).await?.size_bytes),
        Source::Snapshot(handle) => Ok(storage.snapshot(handle).await?.size_bytes),
    }
}

pub(super) async fn delete(storage: &dyn Storage, volume_id: &str) -> Result<DeleteVolumeResponse, Status> {
    match VolumeHandle::required(volume_id) {
        Ok(handle) => storage.delete_volume(handle).await?,
        // What cannot be a volume of ours is gone as far as we are concerned.
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => return Err(status),
    }
    Ok(DeleteVolumeResponse {})
}

pub(super) async fn validate(
    storage: &dyn Storage,
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    check_present(&request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(Status::invalid_argument("the request has no volume_capabilities"));
    }
    let handle = VolumeHandle::required(&request.volume_id)?;
    storage.volume(handle).await?;
    let supported = Capability::all(&request.volume_capabilities)
        .and_then(|_| Parameters::parse(&request.parameters))
        .and_then(|_| params::mutable(&request.mutable_parameters).map(|_| ()));
    Ok(match supported {
        Ok(()) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
        Err(status) => {
            ValidateVolumeCapabilitiesResponse { confirmed: None, message: status.message().into() }
        }
    })
}

pub(super) async fn capacity(
    storage: &dyn Storage,
    request: GetCapacityRequest,
) -> Result<GetCapacityResponse, Status> {
    request
        .volume_capabilities
        .iter()
        .try_for_each(|capability| Capability::parse(capability).map(|_| ()))?;
    let parameters = Parameters::parse(&request.parameters)?;
    let available = storage.available_bytes(parameters.pool.as_deref()).await?;
    Ok(GetCapacityResponse {
        // Object stores tell no bound.
        available_capacity: available.map_or(i64::MAX, to_csi),
        maximum_volume_size: Some(to_csi(MAX_BYTES)),
        minimum_volume_size: Some(to_csi(MIN_BYTES)),
    })
}

pub(super) async fn expand(
    storage: &dyn Storage,
    request: ControllerExpandVolumeRequest,
) -> Result<ControllerExpandVolumeResponse, Status> {
    check_present(&request.volume_id)?;
    let range = request
        .capacity_range
        .ok_or_else(|| Status::invalid_argument("the request has no capacity_range"))?;
    let sizes = Sizes::parse(Some(&range))?;
    let capability = request.volume_capability.as_ref().map(Capability::parse).transpose()?;
    let handle = VolumeHandle::required(&request.volume_id)?;
    let present = storage.volume(handle).await?.size_bytes;
    let wanted = sizes.choose(present, present)?;
    let capacity_bytes = if wanted > present { storage.resize(handle, wanted).await? } else { present };
    let node_expansion_required =
        capability.is_none_or(|capability| matches!(capability.form, Form::Filesystem { .. }));
    Ok(ControllerExpandVolumeResponse { capacity_bytes: to_csi(capacity_bytes), node_expansion_required })
}

pub(super) async fn modify(
    storage: &dyn Storage,
    request: ControllerModifyVolumeRequest,
) -> Result<ControllerModifyVolumeResponse, Status> {
    check_present(&request.volume_id)?;
    let durability = params::mutable(&request.mutable_parameters)?;
    let handle = VolumeHandle::required(&request.volume_id)?;
    match durability {
        Some(durability) => storage.set_durability(handle, durability).await?,
        None => storage.volume(handle).await.map(|_| ())?,
    }
    Ok(ControllerModifyVolumeResponse {})
}

pub(super) async fn get(
    storage: &dyn Storage,
    volume_id: &str,
) -> Result<ControllerGetVolumeResponse, Status> {
    let info = storage.volume(VolumeHandle::required(volume_id)?).await?;
    Ok(ControllerGetVolumeResponse {
        volume: Some(convert::volume(&info)),
        status: Some(VolumeStatus {
            volume_condition: Some(convert::condition(&info)),
            published_node_ids: info.nodes,
        }),
    })
}
