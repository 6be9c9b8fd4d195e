-- The booking application's schema (demo): types and tables. Foreign keys and indexes: constraints.sql.
-- Times are timestamp without time zone, in UTC, as in the application. Upper-case labels are the application's own.

CREATE TYPE locationstatus AS ENUM ('ACTIVE', 'INACTIVE', 'COMING_SOON', 'CLOSED');
CREATE TYPE compensationmodel AS ENUM ('BOOTH_RENTAL', 'COMMISSION', 'HYBRID', 'CUSTOM');
CREATE TYPE servicecategoryenum AS ENUM
    ('HAIRCUT', 'SHAVE', 'BEARD', 'HAIR_TREATMENT', 'STYLING', 'COLOR', 'PACKAGE', 'OTHER');
CREATE TYPE notificationstatus AS ENUM ('PENDING', 'SENT', 'FAILED', 'CANCELLED');
CREATE TYPE consenttype AS ENUM
    ('terms_of_service', 'privacy_policy', 'marketing_emails', 'marketing_sms', 'data_processing', 'third_party_sharing');
CREATE TYPE consentstatus AS ENUM ('granted', 'denied', 'pending', 'withdrawn');
CREATE TYPE exportstatus AS ENUM ('pending', 'processing', 'completed', 'failed', 'expired');
CREATE TYPE processingpurpose AS ENUM
    ('service_delivery', 'payment_processing', 'marketing', 'analytics', 'legal_compliance', 'security');

CREATE TABLE organizations (
    id serial PRIMARY KEY,
    name varchar(255) NOT NULL,
    slug varchar(100) NOT NULL UNIQUE,
    email varchar(255),
    phone varchar(20),
    tax_id varchar(50),
    billing_contact_email varchar(255),
    is_active boolean DEFAULT true,
    created_at timestamp DEFAULT now()
);

CREATE TABLE users (
    id serial PRIMARY KEY,
    email varchar UNIQUE,
    name varchar,
    phone varchar,
    hashed_password varchar,
    role varchar DEFAULT 'user',
    unified_role varchar(50) NOT NULL DEFAULT 'client',
    user_type varchar DEFAULT 'client',
    timezone varchar(50) DEFAULT 'UTC',
    is_active boolean DEFAULT true,
    email_verified boolean DEFAULT false,
    stripe_account_id varchar,
    stripe_account_status varchar,
    commission_rate double precision DEFAULT 0.20,
    location_id integer,
    lifetime_value double precision DEFAULT 0,
    subscription_status varchar DEFAULT 'trial',
    is_test_data boolean DEFAULT false,
    created_at timestamp DEFAULT now()
);

CREATE TABLE barbershop_locations (
    id serial PRIMARY KEY,
    name varchar(255) NOT NULL,
    code varchar(50) NOT NULL UNIQUE,
    address varchar(500) NOT NULL,
    city varchar(100),
    state varchar(50),
    zip_code varchar(20),
    phone varchar(20),
    email varchar(255),
    status locationstatus DEFAULT 'ACTIVE',
    compensation_model compensationmodel DEFAULT 'COMMISSION',
    total_chairs integer,
    active_chairs integer,
    manager_id integer,
    owner_id integer,
    business_hours json,
    timezone varchar(50),
    currency varchar(10) DEFAULT 'USD',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz
);

CREATE TABLE barber_locations (
    id serial PRIMARY KEY,
    barber_id integer NOT NULL,
    location_id integer NOT NULL,
    is_active boolean DEFAULT true,
    created_at timestamp DEFAULT now(),
    UNIQUE (barber_id, location_id)
);

CREATE TABLE barber_profiles (
    id serial PRIMARY KEY,
    user_id integer NOT NULL UNIQUE,
    bio text,
    years_experience integer,
    specialties json,
    certifications json,
    hourly_rate double precision,
    instagram_handle varchar,
    is_active boolean DEFAULT true,
    created_at timestamp DEFAULT now(),
    updated_at timestamp
);

CREATE TABLE services (
    id serial PRIMARY KEY,
    name varchar NOT NULL,
    description text,
    category servicecategoryenum NOT NULL,
    sku varchar UNIQUE,
    base_price double precision NOT NULL,
    min_price double precision,
    max_price double precision,
    duration_minutes integer DEFAULT 30,
    buffer_time_minutes integer DEFAULT 0,
    is_active boolean DEFAULT true,
    is_bookable_online boolean DEFAULT true,
    location_id integer,
    barber_id integer,
    created_at timestamp DEFAULT now(),
    updated_at timestamp,
    created_by_id integer
);

CREATE TABLE clients (
    id serial PRIMARY KEY,
    first_name varchar NOT NULL,
    last_name varchar NOT NULL,
    email varchar(500) UNIQUE,
    phone varchar(100),
    date_of_birth date,
    customer_type varchar DEFAULT 'new',
    total_visits integer DEFAULT 0,
    total_spent double precision DEFAULT 0,
    average_ticket double precision DEFAULT 0,
    no_show_count integer DEFAULT 0,
    cancellation_count integer DEFAULT 0,
    last_visit_date timestamp,
    notes text,
    marketing_enabled boolean DEFAULT true,
    email_opt_in boolean DEFAULT true,
    sms_opt_in boolean DEFAULT true,
    preferred_barber_id integer,
    barber_id integer,
    created_by_id integer,
    location_id integer,
    is_test_data boolean DEFAULT false,
    created_at timestamp DEFAULT now(),
    updated_at timestamp
);

CREATE TABLE appointments (
    id serial PRIMARY KEY,
    user_id integer,
    barber_id integer,
    client_id integer,
    service_id integer,
    organization_id integer,
    service_name varchar,
    start_time timestamp,
    duration_minutes integer,
    price double precision,
    status varchar DEFAULT 'pending',
    buffer_time_before integer DEFAULT 0,
    buffer_time_after integer DEFAULT 0,
    notes text,
    google_event_id varchar,
    created_timezone varchar(50),
    recurring_pattern_id integer,
    is_recurring_instance boolean DEFAULT false,
    is_test_data boolean DEFAULT false,
    version integer NOT NULL DEFAULT 1,
    created_at timestamp DEFAULT now()
);

CREATE TABLE gift_certificates (
    id serial PRIMARY KEY,
    code varchar UNIQUE,
    amount double precision,
    balance double precision,
    status varchar DEFAULT 'active',
    purchaser_name varchar,
    purchaser_email varchar,
    recipient_name varchar,
    recipient_email varchar,
    message text,
    valid_from timestamp,
    valid_until timestamp,
    stripe_payment_intent_id varchar,
    created_at timestamp DEFAULT now(),
    used_at timestamp
);

CREATE TABLE payments (
    id serial PRIMARY KEY,
    user_id integer,
    appointment_id integer,
    barber_id integer,
    organization_id integer,
    amount double precision,
    status varchar DEFAULT 'pending',
    stripe_payment_id varchar,
    stripe_payment_intent_id varchar,
    platform_fee double precision DEFAULT 0,
    barber_amount double precision,
    commission_rate double precision,
    refund_amount double precision DEFAULT 0,
    refund_reason varchar,
    refunded_at timestamp,
    stripe_refund_id varchar,
    gift_certificate_id integer,
    gift_certificate_amount_used double precision DEFAULT 0,
    created_at timestamp DEFAULT now(),
    updated_at timestamp
);

CREATE TABLE refunds (
    id serial PRIMARY KEY,
    payment_id integer,
    amount double precision,
    reason varchar,
    status varchar DEFAULT 'pending',
    stripe_refund_id varchar,
    initiated_by_id integer,
    created_at timestamp DEFAULT now(),
    processed_at timestamp
);

CREATE TABLE payouts (
    id serial PRIMARY KEY,
    barber_id integer,
    amount double precision,
    status varchar DEFAULT 'pending',
    period_start timestamp,
    period_end timestamp,
    payment_count integer,
    stripe_payout_id varchar,
    stripe_transfer_id varchar,
    created_at timestamp DEFAULT now(),
    processed_at timestamp
);

CREATE TABLE guest_bookings (
    id serial PRIMARY KEY,
    guest_name varchar NOT NULL,
    guest_email varchar NOT NULL,
    guest_phone varchar NOT NULL,
    organization_id integer NOT NULL,
    barber_id integer,
    service_id integer NOT NULL,
    appointment_datetime timestamp NOT NULL,
    duration_minutes integer NOT NULL,
    service_price double precision NOT NULL,
    deposit_amount double precision DEFAULT 0,
    status varchar DEFAULT 'pending',
    confirmation_code varchar UNIQUE,
    payment_intent_id varchar,
    payment_status varchar,
    marketing_consent boolean DEFAULT false,
    ip_address varchar,
    user_agent text,
    notes text,
    created_at timestamp DEFAULT now(),
    updated_at timestamp
);

CREATE TABLE notification_queue (
    id serial PRIMARY KEY,
    user_id integer,
    appointment_id integer,
    notification_type varchar,
    template_name varchar,
    recipient varchar,
    subject varchar,
    body text,
    status notificationstatus DEFAULT 'PENDING',
    scheduled_for timestamp,
    sent_at timestamp,
    attempts integer DEFAULT 0,
    error_message text,
    created_at timestamp DEFAULT now(),
    updated_at timestamp
);

CREATE TABLE user_consents (
    id serial PRIMARY KEY,
    user_id integer NOT NULL,
    consent_type consenttype,
    status consentstatus,
    consent_date timestamp,
    withdrawal_date timestamp,
    ip_address varchar(45),
    user_agent text,
    version varchar(50),
    created_at timestamp DEFAULT now(),
    updated_at timestamp,
    UNIQUE (user_id, consent_type)
);

CREATE TABLE data_export_requests (
    id serial PRIMARY KEY,
    user_id integer,
    request_id varchar(255) UNIQUE,
    status exportstatus DEFAULT 'pending',
    requested_at timestamp DEFAULT now(),
    completed_at timestamp,
    expires_at timestamp,
    file_url text,
    file_size_bytes bigint,
    format varchar(50),
    ip_address varchar,
    error_message varchar
);

CREATE TABLE data_processing_logs (
    id serial PRIMARY KEY,
    user_id integer,
    purpose processingpurpose,
    operation varchar(255),
    data_categories json,
    legal_basis varchar(255),
    retention_period_days integer,
    third_party_involved boolean DEFAULT false,
    processing_date timestamp,
    ip_address varchar,
    created_at timestamp DEFAULT now()
);

CREATE TABLE legal_consent_audit (
    id serial PRIMARY KEY,
    user_id integer,
    consent_id integer,
    action varchar(50),
    consent_type varchar(100),
    old_status varchar,
    new_status varchar,
    reason text,
    audit_metadata json,
    ip_address varchar,
    user_agent varchar,
    performed_by integer,
    "timestamp" timestamp DEFAULT now()
);

CREATE TABLE mfa_events (
    id serial PRIMARY KEY,
    user_id integer,
    event_type varchar(50),
    event_status varchar(50),
    event_details varchar(500),
    ip_address varchar(45),
    user_agent varchar(500),
    device_fingerprint varchar(255),
    created_at timestamp DEFAULT now()
);

CREATE TABLE idempotency_keys (
    id serial PRIMARY KEY,
    key varchar(255) UNIQUE,
    operation_type varchar(100),
    user_id integer,
    request_hash varchar(64),
    response_data json,
    created_at timestamp DEFAULT now(),
    expires_at timestamp
);
