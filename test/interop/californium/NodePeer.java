import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.Collections;
import java.util.HexFormat;
import java.util.concurrent.TimeUnit;

import org.eclipse.californium.core.CoapClient;
import org.eclipse.californium.core.CoapHandler;
import org.eclipse.californium.core.CoapResponse;
import org.eclipse.californium.core.coap.CoAP.Code;
import org.eclipse.californium.core.coap.Option;
import org.eclipse.californium.core.coap.Request;
import org.eclipse.californium.core.config.CoapConfig;
import org.eclipse.californium.core.network.CoapEndpoint;
import org.eclipse.californium.elements.auth.RawPublicKeyIdentity;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.californium.elements.config.UdpConfig;
import org.eclipse.californium.scandium.DTLSConnector;
import org.eclipse.californium.scandium.config.DtlsConfig;
import org.eclipse.californium.scandium.config.DtlsConnectorConfig;
import org.eclipse.californium.scandium.dtls.CertificateType;
import org.eclipse.californium.scandium.dtls.PskPublicInformation;
import org.eclipse.californium.scandium.dtls.cipher.CipherSuite;
import org.eclipse.californium.scandium.dtls.pskstore.AdvancedSinglePskStore;
import org.eclipse.californium.scandium.dtls.x509.SingleCertificateProvider;
import org.eclipse.californium.scandium.dtls.x509.StaticNewAdvancedCertificateVerifier;

/**
 * A node on Californium and Scandium that does as it is told, over one DTLS
 * association.
 *
 * <pre>
 * NodePeer BASE-URI CID-LENGTH PSK IDENTITY KEY
 * NodePeer BASE-URI CID-LENGTH ALGORITHM PRIVATE PUBLIC SERVER
 * </pre>
 *
 * Identity and keys are in hexadecimal; ALGORITHM is EC or Ed25519, the keys are
 * PKCS #8 and SubjectPublicKeyInfo. CID-LENGTH: see {@link #connect}. Each line of
 * the standard input is "request" or "observe", a method, options
 * "NUMBER:VALUE,..." and a payload, values in hexadecimal, "-" for none. A JSON
 * object is printed for each answer and, with the step "notified", for each
 * notification.
 */
public class NodePeer {
	static final HexFormat HEX = HexFormat.of();

	public static void main(String[] args) throws Exception {
		int cid = Integer.parseInt(args[1]);
		CoapEndpoint endpoint = args[2].equals("PSK")
				? connect(cid, PskPublicInformation.fromByteArray(bytes(args[3])), bytes(args[4]))
				: connect(cid, args[2], bytes(args[3]), bytes(args[4]), bytes(args[5]));
		CoapClient client = new CoapClient();
		client.setEndpoint(endpoint);
		client.setTimeout(60000L);
		BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
		for (String line; (line = in.readLine()) != null;) {
			String[] words = line.split(" ");
			Request request = new Request(Code.valueOf(words[1]));
			request.setURI(new URI(args[0]));
			if (!words[2].equals("-")) {
				for (String option : words[2].split(",")) {
					String[] parts = option.split(":", 2);
					request.getOptions().addOption(new Option(Integer.parseInt(parts[0]), bytes(parts[1])));
				}
			}
			if (!words[3].equals("-")) {
				request.setPayload(bytes(words[3]));
			}
			if (words[0].equals("observe")) {
				client.observe(request, new Watch());
			} else {
				print("answer", client.advanced(request), request);
			}
		}
		System.exit(0);
	}

	static class Watch implements CoapHandler {
		boolean known;

		@Override
		public void onLoad(CoapResponse r) {
			print(known ? "notified" : "answer", r, null);
			known = true;
		}

		@Override
		public void onError() {
			System.out.println("{\"step\":\"failed\"}");
		}
	}

	static synchronized void print(String step, CoapResponse r, Request request) {
		if (r == null) {
			System.out.println("{\"step\":\"failed\",\"payload\":\"" + HEX.formatHex(String.valueOf(request.getSendError()).getBytes()) + "\"}");
			return;
		}
		StringBuilder options = new StringBuilder();
		for (Option o : r.advanced().getOptions().asSortedList()) {
			options.append(options.isEmpty() ? "" : ",").append(o.getNumber()).append(':').append(HEX.formatHex(o.getValue()));
		}
		System.out.println("{\"step\":\"" + step + "\",\"code\":\"" + r.getCode() + "\",\"options\":\"" + options
				+ "\",\"payload\":\"" + HEX.formatHex(r.getPayload()) + "\"}");
	}

	static Configuration configuration(CipherSuite suite, int cid) {
		CoapConfig.register();
		UdpConfig.register();
		DtlsConfig.register();
		Configuration config = Configuration.createStandardWithoutFile();
		config.set(DtlsConfig.DTLS_ROLE, DtlsConfig.DtlsRole.CLIENT_ONLY);
		config.setAsList(DtlsConfig.DTLS_CIPHER_SUITES, suite);
		// A registration that is made anew would hide an observation that was lost.
		config.set(CoapConfig.NOTIFICATION_REREGISTRATION_BACKOFF, 1, TimeUnit.HOURS);
		if (cid >= 0) {
			config.set(DtlsConfig.DTLS_CONNECTION_ID_LENGTH, cid);
		}
		Integer mtu = Integer.getInteger("mtu"); // of the path, so that messages go in fragments
		if (mtu != null) {
			config.set(DtlsConfig.DTLS_MAX_TRANSMISSION_UNIT, mtu);
		}
		return config;
	}

	static CoapEndpoint endpoint(Configuration config, DtlsConnectorConfig.Builder dtls) {
		return CoapEndpoint.builder().setConfiguration(config).setConnector(new DTLSConnector(dtls.build())).build();
	}

	/** By a pre-shared key; a connection ID of cid bytes is given out (-1: they are not known). */
	static CoapEndpoint connect(int cid, PskPublicInformation identity, byte[] key) {
		Configuration config = configuration(CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, cid);
		DtlsConnectorConfig.Builder dtls = DtlsConnectorConfig.builder(config);
		dtls.setAdvancedPskStore(new AdvancedSinglePskStore(identity, key));
		return endpoint(config, dtls);
	}

	/** By a raw public key; no server is trusted but the one with the key server. */
	static CoapEndpoint connect(int cid, String algorithm, byte[] secret, byte[] shown, byte[] server) throws Exception {
		Configuration config = configuration(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, cid);
		KeyFactory keys = KeyFactory.getInstance(algorithm);
		PrivateKey own = keys.generatePrivate(new PKCS8EncodedKeySpec(secret));
		PublicKey ownPublic = keys.generatePublic(new X509EncodedKeySpec(shown));
		PublicKey other = KeyFactory.getInstance("EC").generatePublic(new X509EncodedKeySpec(server));
		DtlsConnectorConfig.Builder dtls = DtlsConnectorConfig.builder(config);
		dtls.setCertificateIdentityProvider(new SingleCertificateProvider(own, ownPublic));
		dtls.setAdvancedCertificateVerifier(StaticNewAdvancedCertificateVerifier.builder()
				.setTrustedRPKs(new RawPublicKeyIdentity(other))
				.setSupportedCertificateTypes(Collections.singletonList(CertificateType.RAW_PUBLIC_KEY)).build());
		return endpoint(config, dtls);
	}

	static byte[] bytes(String hex) {
		return HEX.parseHex(hex);
	}
}
