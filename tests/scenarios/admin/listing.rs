//! LIST_BANS.

use serde_json::json;

use super::*;

#[test]
fn bans_are_listed_newest_first_with_all_that_is_known() {
    let server = governed();
    let mut boss = boss(&server);
    drop(registered(&server, "troll"));
    banned(&mut boss, ban("troll"), "USER_BANNED", "User troll banned successfully");
    banned(&mut boss, shadow("ghost"), "USER_BANNED", "User ghost banned successfully");
    let hour = BanIp { duration_seconds: Some(3600), ..ban_address("192.0.2.0/24") };
    banned(&mut boss, hour, "IP_BANNED", "IP 192.0.2.0/24 banned successfully");
    let mut listed = bans(&mut boss, false);
    for ban in &mut listed {
        assert!(number(&ban["banned_at"]) > 1_700_000_000_000);
        ban["banned_at"] = json!("then");
    }
    listed[0]["banned_until"] = json!("later");
    let entry = |id: &str, kind: &str| {
        json!({ "ban_id": id, "ban_type": kind, "user_id": null, "nickname": null, "ip_cidr": null, "reason": "spam",
            "shadowban": false, "banned_at": "then", "banned_until": null, "banned_by": "boss" })
    };
    let mut expected = [entry("3", "ip"), entry("2", "user"), entry("1", "user")];
    expected[0]["ip_cidr"] = json!("192.0.2.0/24");
    expected[0]["reason"] = json!("proxy");
    expected[0]["banned_until"] = json!("later");
    expected[1]["nickname"] = json!("ghost");
    expected[1]["shadowban"] = json!(true);
    expected[2]["nickname"] = json!("troll");
    expected[2]["user_id"] = json!("2");
    assert_eq!(listed, expected);
}

#[test]
fn a_list_longer_than_a_frame_is_cut_and_old_rows_of_any_text_do_not_hide_it() {
    let server = governed();
    let mut boss = boss(&server);
    operator(&server)
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
             INSERT INTO Ban (ban_type, ip_cidr, reason, banned_at, banned_by)
             SELECT 'ip', 'not an address ' || i, printf('%.*c', 70000, 'x'), 1, 'old' FROM n",
        )
        .unwrap();
    let listed = bans(&mut boss, false);
    assert!((10..40).contains(&listed.len()), "{} are listed", listed.len());
    assert_eq!(listed[0]["ip_cidr"], "not an address 40");
    assert_eq!(boss.ask(unban_address("not an address 7"), "IP_UNBANNED")["success"], true);
}
