"""The list of what is true of GitHub, and of the test that holds each of it. Numbers are those of the project's facts.

A fact of GitHub's server that Nimbus only relies on is held by the sim, which plays it; the others by the control
plane. What has no test is in NOT_HELD, with the reason. The tests that this list was made for are in
test_github_facts_webhook.py and test_github_facts_rest.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
WEBHOOK = "unit/control_plane/test_github_facts_webhook.py"
REST = "unit/control_plane/test_github_facts_rest.py"
CLIENT = "unit/control_plane/test_github_client.py"
ANSWERS = "unit/control_plane/test_github_answers.py"
CALLS = "unit/control_plane/test_github_transport.py"
LIMITS = "unit/control_plane/test_github_limits.py"
TOKENS = "unit/control_plane/test_github_tokens.py"
WITH_SIM = "unit/control_plane/test_github_sim.py"
DEMAND = "unit/control_plane/test_demand.py"
LABELS = "unit/control_plane/test_label_demand.py"
STOLEN = "unit/control_plane/test_stolen_runners.py"
INBOX = "unit/control_plane/test_inbox.py"
TAKEN = "unit/control_plane/test_webhooks.py"
ASKED = "unit/control_plane/test_redelivery.py"
RUNNERS = "unit/control_plane/test_runners.py"
UNDONE = "unit/control_plane/test_registrations.py"
ROSTER = "unit/control_plane/test_roster.py"
POLL = "unit/control_plane/test_polling.py"
POLL_RULES = "unit/control_plane/test_poll_rules.py"
WIRE = "unit/wire/test_github.py"
WIRE_REST = "unit/wire/test_githubrest.py"
EXAMPLES = "clients/test_webhook_examples.py"
SIM = "unit/sim/test_forge.py"
SIM_REST = "unit/sim/test_rest.py"
SIM_RUNS = "unit/sim/test_rest_runs.py"
SIM_TOKEN = "unit/sim/test_registration.py"
SIM_LATE = "unit/sim/test_fault_deliveries.py"

FACTS: dict[str, dict[str, tuple[str, ...]]] = {
    "5.1 actions and states": {
        "there are four actions: waiting, queued, in_progress, completed": (
            f"{WEBHOOK}::test_each_of_githubs_four_actions_is_a_state_and_only_queued_boots",
            f"{EXAMPLES}::test_every_workflow_job_tells_the_state_that_its_action_and_status_mean",
        ),
        "queued with status waiting is a job at a gate, which boots nothing": (
            f"{DEMAND}::test_a_job_at_an_environment_gate_boots_nothing_until_it_is_queued",
            f"{SIM}::test_a_job_at_an_environment_gate_is_told_as_queued_with_status_waiting",
            f"{EXAMPLES}::test_a_queued_job_behind_a_deployment_gate_waits",
        ),
        "another queued follows its approval": (
            f"{WEBHOOK}::test_an_approved_job_is_told_as_queued_once_more_and_boots_only_then",
        ),
        "in_progress may come with status queued": (
            f"{WEBHOOK}::test_a_job_whose_status_lags_behind_its_action_is_in_progress",
            f"{WIRE}::test_the_action_decides_when_the_status_lags_behind",
        ),
        "webhooks are late, lost and doubled: other sources repair what they miss": (
            "unit/control_plane/test_repair.py::test_polling_alone_finds_a_job_of_a_repository_that_nobody_ever_named",
            "unit/control_plane/test_repair.py::test_redelivery_alone_brings_a_job_whose_delivery_was_lost",
        ),
    },
    "5.1 the payload": {
        "all keys are always there": (f"{SIM}::test_every_state_carries_all_of_githubs_keys_and_the_installation",),
        "a branch, a workflow's name and the runner may be null": (
            f"{WEBHOOK}::test_what_github_leaves_empty_is_missed_by_nobody",
            f"{SIM}::test_the_runner_is_null_until_the_job_is_assigned",
        ),
        "a hosted job's runner is filled in": (f"{EXAMPLES}::test_an_assigned_runner_is_read_and_none_is_none",),
        "conclusions are more than the schema names": (
            f"{WEBHOOK}::test_a_conclusion_is_kept_whatever_github_calls_it",
            f"{WIRE}::test_an_unknown_action_and_conclusion_are_no_error",
        ),
        "the payload names the installation, not a setting": (
            f"{WEBHOOK}::test_the_payload_names_the_installation_and_the_setting_is_only_a_default",
        ),
        "a hook that is not an App's names none": (
            f"{WEBHOOK}::test_a_repositorys_own_hook_names_no_installation_and_the_setting_serves_it",
            f"{WIRE}::test_a_repository_hook_has_no_installation",
        ),
        "started_at of a queued job is its creation": (
            f"{WEBHOOK}::test_started_at_of_a_queued_job_is_no_start",
            f"{SIM}::test_started_at_of_a_queued_job_is_only_its_creation_time",
        ),
        "a job cancelled before pickup completes without runner and steps": (
            f"{WEBHOOK}::test_a_job_cancelled_before_pickup_ends_without_a_runner_and_so_does_its_machine",
            f"{SIM}::test_a_job_cancelled_before_pickup_completes_without_runner_and_steps",
            f"{WIRE}::test_a_job_cancelled_before_pickup_has_no_runner",
        ),
        "completed may come without queued": (f"{DEMAND}::test_completed_without_queued_is_recorded",),
        "a job is known by its id; a re-run brings new ids and another attempt": (
            f"{LABELS}::test_a_rerun_is_a_job_of_its_own_with_its_attempt",
            f"{SIM_RUNS}::test_a_rerun_of_the_failed_jobs_brings_new_ids_and_leaves_the_others",
        ),
    },
    "5.1 labels": {
        "a job's runner group is not in its payload": (
            f"{WEBHOOK}::test_a_runner_group_stands_in_no_payload_of_a_job_that_waits",
            f"{RUNNERS}::test_the_runner_group_is_the_orgs_own_or_the_settings",
        ),
        "labels are a set, compared without case": (f"{WEBHOOK}::test_labels_are_a_set_whatever_their_case_and_order",),
        "a job goes to a runner that carries all its labels": (
            f"{SIM}::test_a_job_lands_on_a_runner_that_carries_all_its_labels_whatever_the_case",
            f"{WIRE}::test_a_runner_with_the_jobs_labels_and_more_serves_it_whatever_the_case",
            f"{WIRE}::test_a_runner_that_lacks_one_label_does_not_serve_the_job",
        ),
        "a runner with extra labels may be taken by a smaller job": (
            f"{SIM}::test_a_runner_with_extra_labels_can_be_taken_by_a_smaller_job",
            f"{STOLEN}::test_a_foreign_job_that_took_our_runner_is_linked_and_the_robbed_set_gets_another",
        ),
        "a just-in-time runner has no implicit labels": (
            f"{SIM}::test_labels_are_stored_in_lower_case_and_none_is_added",
        ),
    },
    "5.1 order": {
        "events come in any order, and more than once": (
            f"{DEMAND}::test_any_order_of_a_jobs_events_told_twice_ends_alike_and_leaves_no_machine_waiting",
            f"{SIM_LATE}::test_a_doubled_delivery_comes_twice_under_one_guid",
            f"{SIM_LATE}::test_an_overtaken_delivery_comes_after_the_jobs_next",
        ),
        "a state never goes back, and a late queued is recorded all the same": (
            f"{DEMAND}::test_events_in_reverse_order_end_in_the_same_state_and_boot_nothing",
        ),
    },
    "5.1 headers": {
        "event, GUID, signature and user agent are there, a timestamp is not": (
            f"{WEBHOOK}::test_a_delivery_has_githubs_headers_and_no_timestamp",
        ),
        "the signature is over the raw body": (
            f"{WIRE}::test_the_example_of_githubs_own_documentation_verifies",
            f"{WIRE}::test_a_signature_over_another_body_is_unauthorized",
        ),
        "the old signature is of no use": (f"{WEBHOOK}::test_the_old_signature_alone_proves_nothing",),
        "an enterprise server adds headers": (
            f"{WEBHOOK}::test_what_an_enterprise_server_adds_to_the_headers_is_no_hindrance",
        ),
        "a timestamp is needed only where the operator's relay adds one": (
            f"{TAKEN}::test_a_relays_timestamp_is_checked_when_present_and_needed_only_if_the_operator_says_so",
            f"{WIRE}::test_githubs_missing_timestamp_header_passes_unless_the_operator_requires_it",
        ),
    },
    "5.1 delivery": {
        "a redelivery carries the GUID of the first": (
            f"{SIM_REST}::test_deliveries_are_signed_and_a_redelivery_carries_the_same_guid",
        ),
        "what could not be processed is accepted again under its GUID": (
            f"{WEBHOOK}::test_a_delivery_that_could_not_be_processed_is_taken_again_under_its_guid",
            f"{INBOX}::test_a_delivery_whose_processing_failed_is_processed_when_github_redelivers_it",
        ),
        "what was seen is a committed row, no key in Redis": (
            f"{WEBHOOK}::test_what_came_before_is_known_by_its_row_and_not_by_redis",
            f"{INBOX}::test_a_delivery_in_whose_midst_a_process_died_is_processed_when_its_claim_ends",
        ),
        "the answer comes within ten seconds, whatever the work": (
            f"{WEBHOOK}::test_an_answer_does_not_wait_for_the_work_behind_the_delivery",
            f"{TAKEN}::test_a_signed_delivery_is_stored_answered_and_only_then_processed",
        ),
        "an answer after ten seconds is none": (
            f"{WEBHOOK}::test_the_sim_waits_as_long_for_an_answer_and_keeps_deliveries_as_long_as_github",
            f"{SIM_LATE}::test_an_answer_that_comes_too_late_is_a_time_out_for_a_delivery_that_arrived",
        ),
        "nothing is redelivered by itself": (
            f"{SIM_REST}::test_a_receiver_that_is_away_is_recorded_and_never_tried_again_by_itself",
        ),
        "a payload has 25 MB at most": (f"{TAKEN}::test_a_body_of_25_mb_is_read_and_one_byte_more_is_too_large",),
    },
    "5.1 redelivery": {
        "the App itself lists deliveries and asks for them": (
            f"{WEBHOOK}::test_deliveries_are_listed_and_asked_for_by_the_app_itself_alone",
            f"{CLIENT}::test_deliveries_come_by_page_with_the_cursor_of_the_next",
        ),
        "attempts of one GUID belong together; one that succeeded is enough": (
            f"{ASKED}::test_what_failed_and_never_came_through_is_asked_for_by_its_newest_attempt",
            f"{ASKED}::test_a_delivery_that_came_through_later_is_not_asked_for_on_this_page_or_an_older_one",
        ),
        "deliveries are kept for three days": (
            f"{SIM_LATE}::test_what_is_older_than_the_window_is_neither_listed_nor_sent_again",
            f"{ASKED}::test_the_first_round_looks_back_over_the_window_and_the_next_over_a_little_more_than_is_new",
            f"{ASKED}::test_a_delivery_that_github_has_forgotten_is_not_asked_for_again",
        ),
        "a round reads 100 pages at most and asks in batches of 25": (
            f"{REST}::test_a_round_of_redelivery_reads_a_hundred_pages_at_most",
        ),
    },
    "5.2 the App": {
        "its JWT is RS256, backdated by a minute, ends within ten, and names the App": (
            f"{REST}::test_the_apps_jwt_is_of_a_minute_ago_and_ends_within_ten_minutes_of_that",
            f"{SIM_REST}::test_an_app_jwt_that_is_old_long_lived_early_or_anothers_is_unauthorized",
        ),
        "an installation's token lives for an hour": (
            f"{SIM_REST}::test_an_app_jwt_buys_an_installation_token_for_one_hour",
        ),
        "a token may be narrowed, to 500 repositories at most": (
            f"{SIM_REST}::test_permissions_may_be_narrowed_and_not_widened",
            f"{SIM_REST}::test_more_than_five_hundred_repositories_are_refused",
        ),
        "an installation is found by its organisation": (
            f"{SIM_REST}::test_the_installation_is_found_by_its_organisation",
        ),
        "a token is kept for its installation, renewed five minutes early, fetched once": (
            f"{CLIENT}::test_a_token_is_renewed_five_minutes_early",
            f"{CLIENT}::test_twenty_calls_at_once_fetch_one_token",
            f"{TOKENS}::test_a_token_is_fetched_once_however_many_wait_and_each_key_has_its_own",
        ),
        "each level of runners has a permission of its own": (
            f"{REST}::test_runners_want_a_permission_to_write_at_their_own_level",
        ),
        "polling takes the permission to read actions": (
            f"{REST}::test_runs_and_jobs_are_polled_by_the_permission_to_read_actions",
        ),
        "who makes an App is told all of them": (
            f"{REST}::test_the_page_on_ones_own_app_names_the_permissions_and_events_that_it_needs",
        ),
        "an App has no runners of an enterprise": (
            f"{REST}::test_runners_belong_to_a_repository_or_an_organisation_and_to_no_enterprise",
        ),
        "refusals are of a few kinds, told by status and words": (
            f"{ANSWERS}::test_a_status_and_words_mean_one_kind",
            f"{WITH_SIM}::test_what_an_account_forbids_is_told_by_its_kind_and_passes_with_it",
            f"{WITH_SIM}::test_an_installation_that_is_gone_is_not_installed",
        ),
    },
    "5.3 just-in-time runners": {
        "a mint names group, labels and work folder": (
            f"{REST}::test_a_mint_names_its_group_its_labels_and_the_usual_work_folder",
        ),
        "the answer is the runner and its config": (
            f"{SIM_REST}::test_a_jit_config_is_made_with_the_runner_it_belongs_to",
        ),
        "no group is 422, a foreign one 403, an unknown one 404": (
            f"{SIM_REST}::test_a_wrong_group_label_or_name_gets_githubs_status",
            f"{CLIENT}::test_a_wrong_group_or_account_is_a_problem_with_githubs_words",
        ),
        "there are 1 to 100 labels": (f"{REST}::test_a_runner_has_a_hundred_labels_at_most",),
        "labels come back in lower case and alone, and serve their job": (
            f"{REST}::test_a_runner_has_its_jobs_labels_in_lower_case_none_besides_and_is_given_that_job",
        ),
        "a taken name is 409: the runner is found by name, deleted and made again": (
            f"{SIM_REST}::test_a_duplicate_name_is_a_409",
            f"{CLIENT}::test_a_taken_name_is_a_conflict",
            f"{RUNNERS}::test_a_reply_that_was_lost_is_asked_for_again_and_leaves_one_runner",
        ),
        "the config goes by the environment, not by the command line": (
            f"{RUNNERS}::test_the_holder_of_a_lease_gets_a_jit_config_for_its_own_machine",
        ),
        "the config is base64 of JSON of files": (
            f"{WIRE}::test_a_jit_config_reads_back_as_written",
            f"{WIRE}::test_what_is_no_jit_config_is_refused_without_quoting_it",
        ),
        "the config is a secret: neither stored nor logged": (
            f"{REST}::test_a_config_is_in_no_row_of_the_database",
            f"{CALLS}::test_tokens_keys_and_configs_are_in_no_message_and_no_log",
        ),
        "a runner takes one job, and is deregistered with it": (
            f"{SIM}::test_a_runner_takes_one_job_and_is_deregistered_with_it",
            f"{UNDONE}::test_a_runner_that_github_removed_with_its_job_costs_no_call",
        ),
        "a runner is bound to no job": (
            f"{REST}::test_a_runner_serves_whatever_job_github_gives_it_and_is_gone_with_that",
            f"{SIM}::test_a_runner_is_not_bound_to_the_job_it_was_made_for",
        ),
        "an idle runner does not live long: it is registered late": (
            f"{REST}::test_nothing_is_registered_before_a_machine_asks_for_it",
        ),
        "GitHub drops an idle runner without a word": (
            f"{SIM}::test_a_runner_that_idles_longer_than_the_limit_is_dropped_unless_it_has_work",
            f"{ROSTER}::test_a_machine_whose_runner_github_dropped_is_ended_and_another_takes_its_place",
            f"{UNDONE}::test_a_runner_that_waits_in_vain_is_deregistered_and_another_machine_takes_its_place",
        ),
        "an enterprise server has the same API below a path": (
            f"{CLIENT}::test_an_enterprise_servers_path_is_kept_before_every_call",
        ),
        "a registration token is good for an hour and for many runners": (
            f"{SIM_TOKEN}::test_a_token_is_good_for_an_hour_and_no_longer",
            f"{RUNNERS}::test_one_registration_token_serves_every_guest_of_a_scope",
            f"{CLIENT}::test_a_registration_token_is_fetched_once_for_its_scope",
        ),
        "a runner that registers itself has exactly the labels it names, and one job": (
            f"{SIM_TOKEN}::test_one_token_registers_many_runners_each_with_exactly_its_labels",
            f"{SIM_TOKEN}::test_a_runner_registers_itself_and_takes_its_one_job",
        ),
        "a remove token takes it away": (f"{SIM_TOKEN}::test_a_remove_token_takes_an_idle_runner_away",),
    },
    "5.4 listing and deleting": {
        "a list tells state, busy and labels, and is narrowed by name": (
            f"{WIRE_REST}::test_a_runner_is_seen_with_its_state_and_labels",
            f"{SIM_REST}::test_runners_are_listed_by_page_and_by_name",
            f"{CLIENT}::test_a_runner_is_minted_found_listed_and_deleted",
        ),
        "a deletion is 204, then 404, and absent is success": (
            f"{SIM_REST}::test_an_idle_runner_is_deleted_once_and_then_not_found",
            f"{UNDONE}::test_a_runner_that_github_removed_already_is_a_success",
        ),
        "a runner that runs a job is not deleted, by whatever status": (
            f"{SIM_REST}::test_a_busy_runner_is_not_deleted",
            f"{REST}::test_a_runner_that_runs_a_job_is_not_deleted_whatever_the_status_says",
            f"{REST}::test_a_deletion_that_is_forbidden_for_another_reason_is_a_problem",
            f"{UNDONE}::test_a_busy_runner_is_left_alone_and_asked_about_again",
        ),
        "the list lags behind a registration": (
            f"{ROSTER}::test_a_runner_that_was_registered_a_moment_ago_may_be_missing",
            f"{ROSTER}::test_a_machine_whose_runner_is_listed_or_just_registered_is_left_alone",
            f"{RUNNERS}::test_a_runner_of_a_lost_reply_that_github_does_not_list_yet_blocks_its_own_machine_alone",
        ),
        "an ephemeral runner that was offline for a day is removed": (
            f"{SIM}::test_an_ephemeral_runner_offline_for_a_day_is_removed",
            f"{UNDONE}::test_a_registration_that_cannot_be_undone_for_more_than_a_day_is_left_to_github",
        ),
        "a job that is not accepted in a minute goes to another runner": (
            f"{SIM}::test_an_offer_not_accepted_in_sixty_seconds_goes_to_another_runner",
            f"{REST}::test_a_job_whose_runner_did_not_accept_within_a_minute_goes_to_another_machines",
        ),
        "a job that waited for a day fails": (
            f"{SIM}::test_a_job_queued_for_a_day_fails",
            f"{REST}::test_a_job_that_github_gave_up_after_a_day_leaves_no_machine",
            f"{DEMAND}::test_a_job_queued_for_more_than_a_day_asks_for_nothing",
        ),
    },
    "5.5 reconciliation": {
        "there is no list of an organisation's jobs: runs and attempts are asked for, by repository": (
            f"{REST}::test_a_pass_asks_each_repository_for_queued_and_running_runs_and_each_attempt_for_its_jobs",
            f"{CLIENT}::test_runs_and_their_jobs_are_listed_as_their_webhooks_would_tell",
        ),
        "a run in progress hides queued siblings": (
            f"{POLL}::test_a_queued_job_hidden_in_a_run_in_progress_is_found",
            f"{SIM_RUNS}::test_a_run_with_one_started_job_is_in_progress_while_its_sibling_is_queued",
        ),
        "jobs that are not ours are left alone": (f"{POLL}::test_a_job_that_is_not_ours_is_left_alone",),
        "as many runners are required as jobs are queued, less those that are idle": (
            f"{DEMAND}::test_each_queued_job_gets_a_machine_and_the_same_job_told_twice_only_one",
            f"{RUNNERS}::test_only_as_many_runners_as_queued_jobs_are_minted",
        ),
        "too many heal by themselves": (
            f"{REST}::test_what_was_made_too_much_is_taken_away_again",
            f"{UNDONE}::test_an_idle_runner_that_no_job_needs_is_deregistered_and_then_its_machine_is_cancelled",
        ),
        "a repository that is idle for six hours is looked at seldom": (
            f"{POLL}::test_an_idle_repository_is_looked_at_seldom_and_an_archived_one_never",
        ),
        "five minutes or more lie between looks, by the quota that is left": (
            f"{POLL}::test_repositories_are_looked_at_when_they_are_due",
            f"{POLL_RULES}::test_the_less_quota_is_left_the_slower_the_poll_and_the_reserve_is_not_touched",
        ),
        "a pass looks into 200 runs at most": (
            f"{POLL}::test_runs_beyond_one_pass_are_looked_into_by_the_next",
            f"{POLL_RULES}::test_runs_that_were_not_looked_into_come_first_and_then_the_oldest_look",
        ),
        "what has not changed costs nothing": (
            f"{REST}::test_a_pass_over_what_has_not_changed_costs_nothing_of_the_hour",
            f"{SIM_RUNS}::test_what_has_not_changed_is_not_sent_again_and_costs_nothing",
        ),
    },
    "5.6 limits": {
        "the hourly quota is each installation's own, and as large as the headers say": (
            f"{REST}::test_the_hourly_quota_is_whatever_the_headers_say",
            "unit/sim/test_many_accounts.py::test_each_installation_has_a_limit_of_its_own",
            f"{LIMITS}::test_headers_that_are_none_or_another_resources_change_nothing",
        ),
        "100 calls at once, 900 points a minute, 1,500 registrations in five minutes": (
            f"{REST}::test_unless_the_operator_says_otherwise_no_secondary_limit_can_be_reached",
            f"{LIMITS}::test_no_minute_ever_costs_more_than_its_points",
            f"{LIMITS}::test_no_more_are_inside_than_there_are_places",
        ),
        "a read costs 1 and a write 5: 180 registrations a minute": (
            f"{LIMITS}::test_180_registrations_go_in_a_minute_and_the_next_when_the_first_is_a_minute_old",
        ),
        "on 403 or 429, retry-after counts": (
            f"{LIMITS}::test_github_names_the_time_and_nobody_calls_before_it",
            f"{ANSWERS}::test_the_secondary_limit_lasts_as_long_as_github_says_or_a_minute",
        ),
        "with nothing left, the reset counts": (
            f"{ANSWERS}::test_the_primary_limit_lasts_until_its_reset",
            f"{LIMITS}::test_at_nothing_left_nobody_calls_until_the_reset",
        ),
        "else a minute, and longer each time": (
            f"{LIMITS}::test_without_a_time_it_doubles_from_a_minute_up_to_a_quarter_of_an_hour",
        ),
        "who goes on is banned: nobody of that installation calls meanwhile": (
            f"{CALLS}::test_after_slow_down_nobody_calls_that_installation_and_others_do",
            f"{CLIENT}::test_an_exhausted_hour_says_how_long_to_wait_and_is_not_asked_about_again",
        ),
    },
}

NOT_HELD = {
    "5.1 GitHub sends no payload above 25 MB": "the sim makes none so large; who sends us more is refused",
    "5.3 how long GitHub keeps an idle runner": "unknown (2 to 60 minutes were seen); our own limit is a setting",
    "5.4 a runner that is not ephemeral is removed after 14 days": "we register none",
    "5.6 the points of a minute are one count for all processes": "each process counts its own; the operator divides",
    "5.6 90 s of CPU a minute": "nobody tells us what a call cost; the answer to it is a limit like any other",
    "5.6 80 content-creating requests a minute, 500 an hour": "whether a registration is one is not known",
}


@pytest.mark.parametrize("section", FACTS)
def test_each_fact_of_github_is_held_by_tests_that_are_there(section: str) -> None:
    for fact, held_by in FACTS[section].items():
        assert held_by, fact
        for test in held_by:
            path, _, name = test.partition("::")
            assert name in names_in(path), f"{fact}: {test} is not there"


@pytest.mark.parametrize("path", [WEBHOOK, REST])
def test_each_test_that_was_made_for_a_fact_stands_in_the_list(path: str) -> None:
    listed = {test for facts in FACTS.values() for held_by in facts.values() for test in held_by}
    assert {f"{path}::{name}" for name in names_in(path)} <= listed


def test_what_is_not_held_says_why_and_is_not_in_the_list_of_what_is() -> None:
    held = {fact for facts in FACTS.values() for fact in facts}
    assert all(NOT_HELD.values())
    assert not held & {fact.partition(" ")[2] for fact in NOT_HELD}


def names_in(path: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", (TESTS / path).read_text(), re.MULTILINE))
