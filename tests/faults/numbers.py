"""The faults that a host agent must survive, by the numbers of the project's list, each with the test that shows it.

The list is older than this file, so its numbers have gaps; those that only Firecracker can have are not here yet.
test_numbers.py checks that each of these tests exists; the campaign's report ends with the table.
"""

from __future__ import annotations

from dataclasses import dataclass

PART = "tests/faults/test_campaign.py::test_a_fault_leaks_nothing_runs_nothing_twice_and_hurts_no_neighbour"
NETWORK = "tests/host/test_network_lifecycle.py"
LINKS = "tests/host/test_nft_and_netns.py"
CLAIMS = "tests/unit/host_agent/test_claims.py"
LEASED = "tests/faults/test_leased_machine.py"
ADOPTION = "tests/faults/test_adoption.py"
STEPS = "tests/faults/test_every_step.py"
GUEST = "tests/unit/host_agent/test_guest.py"
CYCLES = "tests/faults/test_cycles.py"


@dataclass(frozen=True)
class Required:
    """What must come of one fault, and which tests show it."""

    outcome: str
    tests: tuple[str, ...]


NUMBERS: dict[int, Required] = {
    1: Required(
        "a record that cannot be written: nothing was taken, tried again", (f"{PART}[host.disk._sync_folder error]",)
    ),
    2: Required(
        "killed after the record, before anything: the record goes",
        (f"{PART}[host_agent.ledger.Ledger.create kill-after]",),
    ),
    3: Required(
        "leftovers under the name: all anew, nobody else's touched",
        (f"{NETWORK}::test_acquire_over_leftovers_of_each_kind_starts_afresh",),
    ),
    4: Required(
        "netlink refuses: all undone, the slot kept apart after three times",
        (
            f"{PART}[host.link._set_families error]",
            f"{CLAIMS}::test_a_slot_whose_network_fails_three_times_is_kept_apart_whatever_vm_it_was",
        ),
    ),
    5: Required(
        "a veth that comes late or goes: waited for, made once more",
        (
            f"{LINKS}::test_a_veth_that_is_lost_while_it_is_made_is_made_once_more",
            f"{LINKS}::test_a_link_that_comes_late_is_waited_for_and_one_that_never_comes_is_not_for_long",
        ),
    ),
    6: Required(
        "no tap: fails at once with its cause",
        (
            f"{PART}[host.native.open_tap error]",
            f"{LINKS}::test_a_tap_that_another_holds_open_is_refused_at_once_with_its_cause",
        ),
    ),
    7: Required(
        "rejected rules: no network, no job", (f"{NETWORK}::test_a_host_whose_rules_are_rejected_gets_no_network",)
    ),
    8: Required("rules that are gone already: success", (f"{LINKS}::test_removing_a_table_that_is_absent_is_success",)),
    9: Required(
        "no slot: no lease is asked for",
        (
            "tests/unit/host_agent/test_poller.py::test_a_host_that_is_full_asks_nobody_and_finds_out_by_itself_when_it_is_not_any_more",
        ),
    ),
    10: Required(
        "a uid with a live process: not given",
        ("tests/unit/host/test_slots.py::test_a_slot_whose_uid_has_a_live_process_is_passed_over",),
    ),
    15: Required(
        "a folder of a VM that nobody knows: gone",
        ("tests/faults/test_leftovers.py::test_a_folder_without_a_record_is_swept_by_its_name",),
    ),
    16: Required(
        "no controller: refused where limits are demanded",
        (f"{CLAIMS}::test_a_host_that_must_limit_its_vms_and_cannot_gives_none",),
    ),
    19: Required(
        "a pid that is another's by now: let live",
        (f"{CLAIMS}::test_a_process_that_only_has_the_keepers_old_pid_is_let_live",),
    ),
    24: Required(
        "a frozen VMM dies at its deadline",
        ("tests/native/test_keeper.py::test_a_vmm_that_is_stopped_or_frozen_dies_at_its_deadline_all_the_same",),
    ),
    26: Required(
        "no hello: killed at the boot's limit",
        ("tests/unit/host_agent/test_attend.py::test_a_connection_alone_gives_a_hung_boot_no_more_time",),
    ),
    27: Required(
        "a dead kernel is no success",
        ("tests/vm/test_run_command.py::test_a_guest_whose_kernel_dies_is_a_crash_and_no_success",),
    ),
    35: Required(
        "a link that breaks, a stranger, two hellos: once, by nonce",
        (
            f"{PART}[host_agent.guesttalk.Talk._hear_hello error]",
            f"{GUEST}::test_a_hello_with_another_nonce_is_not_believed",
            f"{GUEST}::test_a_second_hello_to_one_attach_changes_nothing",
        ),
    ),
    36: Required(
        "no secret in log, record, spool or environment, however it ends",
        (
            f"{PART}[runner partial]",
            "tests/native/test_keeper_start.py::test_the_environment_of_the_agent_never_reaches_the_vmm",
        ),
    ),
    37: Required(
        "a VMM that dies: a crash, nothing left",
        ("tests/contract/test_vmm.py::test_a_vmm_that_dies_under_its_job_is_a_crash_and_leaves_nothing",),
    ),
    39: Required(
        "a full disk: of the host its fault, said soon; none begun",
        (
            "tests/vm/test_run_ending.py::test_a_disk_that_fills_up_under_a_job_is_the_hosts_fault_and_said_soon",
            "tests/vm/test_run_refused.py::test_a_disk_without_room_for_a_vm_is_said_and_nothing_is_left",
        ),
    ),
    41: Required("no log pipeline: spooled, nothing waits", (f"{PART}[ingest error]", f"{PART}[ingest hang]")),
    42: Required(
        "a command beyond its time: ended, said once",
        ("tests/contract/test_vmm.py::test_a_command_beyond_its_time_is_ended_and_said_to_be",),
    ),
    43: Required(
        "cancelled at any step: nothing left", (f"{STEPS}::test_cancelling_at_any_step_leaves_nothing_at_once",)
    ),
    44: Required(
        "impatient signals change nothing", ("tests/vm/test_run_ending.py::test_an_impatient_person_changes_nothing",)
    ),
    45: Required(
        "a release that hangs: limited, tried again, others go on",
        (
            f"{PART}[host.conntrack.flush_connections hang]",
            "tests/unit/host_agent/test_reaper.py::test_a_release_that_hangs_in_the_kernel_holds_one_thread_however_often_it_is_tried",
        ),
    ),
    46: Required("two teardowns at once: no error", (f"{STEPS}::test_two_reapers_at_once_do_not_disturb_each_other",)),
    47: Required(
        "no slot before the VMM's end",
        (f"{CLAIMS}::test_a_slot_is_never_given_back_before_the_vmm_the_cgroup_and_the_network",),
    ),
    48: Required(
        "nothing of the last tenant's connections",
        (f"{NETWORK}::test_the_next_tenant_of_a_slot_meets_no_connection_of_the_last",),
    ),
    49: Required(
        "fenced or not renewed: dead in time, nothing told",
        (
            f"{LEASED}::test_a_lease_that_is_fenced_kills_its_vm_and_reports_nothing",
            f"{LEASED}::test_a_partition_ends_the_vm_before_its_lease_may_be_handed_on",
        ),
    ),
    50: Required(
        "401, 429, 5xx, silence: tried again within the lease",
        tuple(
            f"{PART}[{fault}]"
            for fault in ("renew_running 401", "renew_running 429", "renew_running lost", "finish lost")
        ),
    ),
    52: Required(
        "killed at any step: the next agent leaves nothing",
        (
            f"{STEPS}::test_sigkill_at_any_step_leaves_nothing_that_a_reaper_does_not_find",
            f"{PART}[host_agent.ledger.Ledger.remove kill-before]",
        ),
    ),
    53: Required(
        "a restart with a live VM: adopted, or killed where its lease is lost",
        (
            f"{ADOPTION}::test_a_machine_that_was_left_ends_well_under_the_next_agent_with_the_same_vmm",
            f"{ADOPTION}::test_a_lease_that_another_holds_by_now_ends_the_vm_and_nothing_is_told",
        ),
    ),
    54: Required(
        "two agents: the second exits 75",
        ("tests/unit/host_agent/test_main.py::test_a_second_agent_on_one_state_root_exits_75_and_says_why",),
    ),
    55: Required(
        "a host that was restarted: files only",
        (f"{ADOPTION}::test_a_machine_whose_host_was_restarted_is_told_as_a_host_fault_and_touches_no_process",),
    ),
    57: Required(
        "a reaper that fails at one: goes on, counts",
        (
            "tests/unit/host_agent/test_reaper.py::test_a_record_of_a_newer_release_is_left_alone_and_told",
            "tests/unit/host_agent/test_reaper.py::test_a_kind_of_object_that_the_host_does_not_list_keeps_no_record_from_being_reaped_and_is_counted",
        ),
    ),
    58: Required(
        "drained: jobs end, or go back when time is up",
        (
            "tests/acceptance/test_drain.py::test_a_running_job_comes_to_its_own_end_and_no_new_one_begins",
            "tests/acceptance/test_drain.py::test_what_runs_when_time_is_up_is_torn_down_and_starts_again_elsewhere",
        ),
    ),
    59: Required(
        "many lives: descriptors, threads and memory stay",
        (f"{CYCLES}::test_a_thousand_machines_later_the_agent_holds_no_more_descriptors_threads_and_memory",),
    ),
    60: Required(
        "many at once: each its own guest",
        (f"{CYCLES}::test_of_a_hundred_machines_that_start_at_once_each_runs_its_own_job_in_its_own_vm",),
    ),
}


def render_table() -> str:
    """The table as lines of Markdown."""
    rows = [f"| {number} | {one.outcome} | {', '.join(one.tests)} |" for number, one in sorted(NUMBERS.items())]
    return "\n".join(["| fault | required outcome | shown by |", "|---|---|---|", *rows, ""])
