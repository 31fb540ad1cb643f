-- Creates pixelloop's tables, or adopts the two that a user may already have: rows and columns stay,
-- ours are added. Written for Postgres 15 to 18.

create table if not exists public.training_runs (id bigserial primary key);
alter table public.training_runs
    add column if not exists uid uuid not null default gen_random_uuid(),
    add column if not exists campaign text,
    add column if not exists number integer,
    add column if not exists run_name text,
    add column if not exists run_date timestamptz default now(),
    add column if not exists status text,
    add column if not exists outcome text,
    add column if not exists failure text,
    add column if not exists base_model text,
    add column if not exists model_type text,
    add column if not exists dataset text,
    add column if not exists num_images integer,
    add column if not exists all_parameters jsonb,
    add column if not exists quality double precision check (quality between 0 and 100),
    add column if not exists best_epoch integer,
    add column if not exists best_checkpoint text,
    add column if not exists epochs_done integer not null default 0,
    add column if not exists total_training_time double precision,
    add column if not exists peak_memory_mb double precision,
    add column if not exists predicted jsonb,
    add column if not exists verdict jsonb,
    add column if not exists parameter_analysis jsonb,
    add column if not exists root_cause_diagnosis jsonb,
    add column if not exists recommended_next_steps text[],
    add column if not exists issues_found text[],
    add column if not exists notes text,
    add column if not exists started_at timestamptz,
    add column if not exists finished_at timestamptz;
create unique index if not exists training_runs_uid on public.training_runs (uid);
create unique index if not exists training_runs_campaign_number on public.training_runs (campaign, number);
create index if not exists training_runs_all_parameters on public.training_runs using gin (all_parameters jsonb_path_ops);

create table if not exists public.epoch_results (
    id bigserial primary key,
    training_run_id bigint references public.training_runs (id) on delete cascade,
    epoch_number integer
);
alter table public.epoch_results
    add column if not exists uid uuid not null default gen_random_uuid(),
    add column if not exists quality double precision check (quality between 0 and 100),
    add column if not exists train_loss double precision,
    add column if not exists seconds double precision,
    add column if not exists evaluation_seconds double precision,
    add column if not exists checkpoint text,
    add column if not exists sample_sheet text,
    add column if not exists quantitative_metrics jsonb,
    add column if not exists diagnosed_issues jsonb,
    add column if not exists recommendations text[],
    add column if not exists created_at timestamptz default now();
create unique index if not exists epoch_results_uid on public.epoch_results (uid);
create index if not exists epoch_results_run on public.epoch_results (training_run_id, epoch_number);
create index if not exists epoch_results_metrics on public.epoch_results using gin (quantitative_metrics jsonb_path_ops);

create table if not exists public.campaigns (
    name text primary key,
    settings jsonb not null,
    status text not null,
    end_reason text,
    created_at timestamptz not null default now()
);
create table if not exists public.refused_proposals (
    uid uuid primary key,
    campaign text not null,
    number integer not null,
    parameters jsonb not null,
    verdict jsonb not null,
    predicted jsonb,
    created_at timestamptz not null
);
create index if not exists refused_proposals_campaign on public.refused_proposals (campaign, number);
create table if not exists public.hypotheses (
    uid uuid primary key,
    campaign text not null,
    priority integer not null,
    change jsonb not null,
    parameters jsonb not null,
    rationale text not null,
    expected jsonb not null,
    gain double precision not null,
    state text not null,
    created_at timestamptz not null
);
create index if not exists hypotheses_campaign on public.hypotheses (campaign, state, priority);
create table if not exists public.analyses (
    campaign text not null,
    created_at timestamptz not null,
    n_runs integer not null,
    effects jsonb not null,
    primary key (campaign, created_at)
);

-- The Data API shows no table without an explicit grant, and none to a browser: only the secret key's role.
do $$
declare
    t text;
begin
    foreach t in array array[
        'training_runs', 'epoch_results', 'campaigns', 'refused_proposals', 'hypotheses', 'analyses'
    ] loop
        execute format('alter table public.%I enable row level security', t);
        execute format('grant select, insert, update, delete on public.%I to service_role', t);
    end loop;
    grant usage, select on all sequences in schema public to service_role;
end
$$;

notify pgrst, 'reload schema';
