#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn extent((container, host, length): (u32, u32, u32)) -> Extent {
    Extent {
        container,
        host,
        length,
    }
}

fn map(extents: &[(u32, u32, u32)]) -> Result<IdMap, IdMapError> {
    IdMap::new(extents.iter().copied().map(extent).collect())
}

/// User 0 is 1000, users from 1 on are those from 100000 on; groups are those from 200000 on.
fn mapping() -> IdMapping {
    IdMapping {
        users: map(&[(0, 1000, 1), (1, 100_000, 65_535)]).unwrap(),
        groups: map(&[(0, 200_000, 65_536)]).unwrap(),
    }
}

fn capability(magic: u32, root: Option<u32>) -> Vec<u8> {
    let mut value = magic.to_le_bytes().to_vec();
    value.extend(*b"permitted, inher");
    value.extend(root.map(u32::to_le_bytes).into_iter().flatten());
    value
}

fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(7u16.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

#[test]
fn ids_of_several_ranges_are_found_in_any_order_of_them() {
    let several = map(&[(1, 100_000, 65_535), (0, 1000, 1)]).unwrap();
    assert_eq!(several, mapping().users);
    assert_eq!(several.to_string(), "0:1000:1,1:100000:65535");
    let hosts = [0, 1, 65_535, 65_536, NO_ID].map(|id| several.to_host(id));
    assert_eq!(
        hosts,
        [Some(1000), Some(100_000), Some(165_534), None, None]
    );
    assert_eq!(several.shown(65_536), 65_534);
    assert_eq!(mapping().root(), (1000, 200_000));
}

#[test]
fn what_the_kernel_takes_for_no_mapping_is_none() {
    assert_eq!(map(&[]), Err(IdMapError::Empty));
    assert_eq!(map(&[(0, 1, 0)]), Err(IdMapError::Range));
    assert_eq!(map(&[(0, NO_ID, 1)]), Err(IdMapError::Range));
    assert_eq!(map(&[(NO_ID, 0, 1)]), Err(IdMapError::Range));
    assert!(map(&[(0, 0, NO_ID)]).is_ok());
    assert_eq!(map(&[(0, 0, 2), (1, 9, 1)]), Err(IdMapError::Overlap));
    assert_eq!(map(&[(0, 8, 2), (5, 9, 1)]), Err(IdMapError::Overlap));
    let many: Vec<_> = (0..341).map(|id| (id, id, 1)).collect();
    assert_eq!(map(&many), Err(IdMapError::TooMany));
    assert!(map(&many[1..]).is_ok());
}

#[test]
fn capabilities_get_the_containers_root() {
    let ids = mapping();
    let mapped = |value: &[u8]| mapped_value(b"security.capability", value, &ids).into_owned();
    for flag in [0, 1] {
        let third = |root| capability(0x0300_0000 | flag, Some(root));
        assert_eq!(mapped(&capability(0x0200_0000 | flag, None)), third(1000));
        assert_eq!(mapped(&third(0)), third(1000));
        assert_eq!(mapped(&third(33)), third(100_032));
        assert_eq!(mapped(&third(70_000)), third(NO_ID));
    }
    for odd in [
        b"".to_vec(),
        capability(0x0100_0000, None),
        capability(0x0200_0000, Some(0)),
        capability(0x0300_0000, None),
        capability(0x0200_0002, None),
    ] {
        assert_eq!(mapped(&odd), odd);
    }
}

#[test]
fn access_control_lists_get_the_users_and_groups_of_this_node() {
    let ids = mapping();
    // The owner, users, the group, groups, the mask, the others.
    let given = acl(&[
        (1, NO_ID),
        (2, 0),
        (2, 33),
        (2, 70_000),
        (4, NO_ID),
        (8, 33),
        (8, 70_000),
        (16, NO_ID),
        (32, NO_ID),
    ]);
    let expected = acl(&[
        (1, NO_ID),
        (2, 1000),
        (2, 100_032),
        (2, 65_534),
        (4, NO_ID),
        (8, 200_033),
        (8, 65_534),
        (16, NO_ID),
        (32, NO_ID),
    ]);
    for name in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
        assert_eq!(&*mapped_value(name, &given, &ids), expected);
        for odd in [&given[..given.len() - 1], &[3, 0, 0, 0], b"", b"\x02"] {
            assert_eq!(&*mapped_value(name, odd, &ids), odd);
        }
    }
    let other = mapped_value(b"user.acl", &given, &ids);
    assert!(matches!(other, Cow::Borrowed(value) if value == given));
}

/// Whether two ids are the same one of a map, written down without any cleverness.
fn model(extents: &[Extent], container: u32, host: u32) -> bool {
    let mut offsets = extents.iter().map(|extent| {
        let container = u64::from(container).checked_sub(extent.container.into());
        let host = u64::from(host).checked_sub(extent.host.into());
        (container, host, u64::from(extent.length))
    });
    offsets.any(|(container, host, length)| {
        container == host && container.is_some_and(|offset| offset < length)
    })
}

/// Ranges and ids that often meet, at both ends of the numbers.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..40, 65_500u32..65_540, u32::MAX - 40..=u32::MAX]
}

proptest! {
    #[test]
    fn a_map_takes_each_id_where_its_ranges_say_and_back(
        extents in vec((id(), id(), 0u32..12), 0..5), ids in vec(id(), 20)
    ) {
        let extents: Vec<_> = extents.into_iter().map(extent).collect();
        let last = |first: u32, length: u32| u64::from(first) + u64::from(length);
        let sound = |it: &Extent| it.length > 0
            && last(it.container, it.length) <= u64::from(u32::MAX)
            && last(it.host, it.length) <= u64::from(u32::MAX);
        let meet = |a: u32, b: u32, x: &Extent, y: &Extent|
            u64::from(a) < last(b, y.length) && u64::from(b) < last(a, x.length);
        let overlap = extents.iter().enumerate().any(|(number, x)| extents[..number].iter().any(
            |y| meet(x.container, y.container, x, y) || meet(x.host, y.host, x, y)));
        let map = IdMap::new(extents.clone());
        let possible = !extents.is_empty() && extents.iter().all(sound) && !overlap;
        prop_assert_eq!(map.is_ok(), possible);
        let Ok(map) = map else { return Ok(()) };
        for id in ids {
            match map.to_host(id) {
                Some(host) => {
                    prop_assert!(model(&extents, id, host));
                    prop_assert_eq!(map.to_container(host), Some(id));
                }
                None => prop_assert!(extents.iter().all(
                    |it| id < it.container || u64::from(id) >= last(it.container, it.length))),
            }
            if let Some(container) = map.to_container(id) {
                prop_assert!(model(&extents, container, id));
            }
        }
        prop_assert_eq!(map.to_container(map.stranger()), None);
    }

    #[test]
    fn no_value_of_an_image_brings_the_mapping_down(
        name in prop_oneof![Just("security.capability"), Just("system.posix_acl_access")],
        version in 0u8..5, rest in vec(any::<u8>(), 0..60),
    ) {
        let mut value = vec![version, 0, 0, version];
        value.extend(rest);
        let mapped = mapped_value(name.as_bytes(), &value, &mapping());
        // Twice is not the same as once, but never longer than one id more.
        prop_assert!(mapped.len() == value.len() || mapped.len() == value.len() + 4);
    }
}
